"""trl's side of a cell, with its defaults where they do not change the work."""

from __future__ import annotations

import tempfile
from typing import Any

from benchmarks.clock import Clock
from benchmarks.work import Cell, model_of, texts, tokenizer_of


def measure(cell: Cell) -> Clock:
    """Train."""
    from datasets import Dataset
    from transformers import TrainerCallback

    clock, trainer = Clock(), _import(cell)
    model, tokenizer = model_of(cell.model), tokenizer_of(cell.model)
    clock.ready()
    data = Dataset.from_list(texts(cell, cell.batch * 8))

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick(int(made._total_train_tokens) if cell.packed else 0)

    with tempfile.TemporaryDirectory() as out:
        made = _trainer(cell, trainer, model, tokenizer, data, out)
        made.add_callback(Ticks())
        made.train()
    return clock


def _import(cell: Cell) -> Any:
    """The trainer of a cell, with all that it imports."""
    import peft  # noqa: F401 - imported by the trainer later, which is not training
    import trl

    return {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer, "grpo": trl.GRPOTrainer}[cell.kind]


def _trainer(cell: Cell, trainer: Any, model: Any, tokenizer: Any, data: Any, out: str) -> Any:
    import trl

    peft = None
    if cell.adapt != "full":
        from peft import LoraConfig

        peft = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    common: dict[str, Any] = {
        "output_dir": out, "per_device_train_batch_size": cell.batch, "max_steps": cell.steps + 2, "learning_rate": 1e-4,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1000, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "disable_tqdm": True, "lr_scheduler_type": "linear",
    }  # fmt: skip
    if cell.kind == "sft":
        length = {"max_length": cell.width, "packing": True} if cell.packed else {"max_length": None, "packing": False}
        if cell.packed:
            common["per_device_train_batch_size"] = max(1, round(cell.batch / 2.6))
        args = trl.SFTConfig(**common, **length, completion_only_loss=True)
        return trainer(model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=peft)
    if cell.kind == "dpo":
        args = trl.DPOConfig(**common, max_length=None, precompute_ref_log_probs=True)
        return trainer(model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=peft)
    args = trl.GRPOConfig(**common, num_generations=8, max_completion_length=cell.tokens, beta=0.0, temperature=1.0)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [sum(w.endswith("2") for w in c.split()) / (len(c.split()) or 1) for c in completions]

    return trainer(model, reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer)
