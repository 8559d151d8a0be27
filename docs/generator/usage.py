"""How a technique is used: a whole recipe, or Python where recipes have no slot for it."""

from __future__ import annotations

from generator.source import component_class
from luthier.core.registry import Entry

PYTHON_ONLY = ("edit.", "diffusion.schedules.", "data.synthesise.")
"""How the ids of techniques begin for which recipes have no slot."""
PYTHON_EXAMPLES = {"phrases": '("the formula",)', "sites": '"*.3.mlp.down_proj"'}
SAMPLING = {"samplers": "sampler", "guidance": "guides"}
"""Groups of the diffusion room that the `sampling:` section of a recipe names."""
EXAMPLES = {
    "keep": "100",
    "inner": "nll",
    "rewards": "[exact, format]",
    "reward": "exact",
    "builder": "divpo",
    "phrases": '["the formula"]',
    "sites": '"*.3.mlp.down_proj"',
    "directions": "directions.safetensors",
}
"""Values for parameters without a default, as a recipe writes them."""
ADAPTED = {("factor_pair",): "lora"}
"""The usual adaptation with the tags that a regulariser asks for."""
READERS = {"divpo": "dpo", "vote_pairs": "scpo", "cream_pairs": "cream", "iterated_pairs": "dpo"}
"""The loss that reads the pairs of a builder or loop."""


def spec(entry: Entry) -> str:
    """The technique as a recipe names it, with values for the parameters that have no default."""
    required = [p.name for p in entry.parameters if p.default is None]
    given = ", ".join(f"{name}: {EXAMPLES[name]}" for name in required)
    return f"{{{entry.short}: {{{given}}}}}" if required else entry.short


def slot(entry: Entry) -> tuple[str, str]:
    """(key of a recipe, what to write there)."""
    group = entry.id.split(".")[1]
    if entry.room == "diffusion" and group in SAMPLING:
        return (
            "sampling",
            f"{{{SAMPLING[group]}: {spec(entry)}}}" if group == "samplers" else f"{{guides: [{spec(entry)}]}}",
        )
    if entry.room == "diffusion":
        return "objective", spec(entry)
    if entry.room == "optim":
        key = {"rules": "optimiser", "schedules": "schedule"}.get(group, "regularise")
    else:
        key = {"objectives": "objective", "data": "steps", "loops": "loop"}.get(entry.room, entry.room)
    several = key in ("regularise", "measure", "steps")
    return key, f"[{spec(entry)}]" if several else spec(entry)


def recipe(entry: Entry) -> str:
    """A whole recipe that uses the technique; MODEL, FILE and the like are to be filled in."""
    key, value = slot(entry)
    if entry.room == "merge":
        models = "[TUNED]" if entry.short in ("wise_ft", "lines", "half_reset") else "[TUNED, ANOTHER]"
        judge = "judge: {data: FILE}\n" if entry.card.needs.handles else ""
        return f"base: MODEL\nmodels: {models}\nmerge: {value}\n{judge}"
    lines = [*beginning(entry, key, value), *partners(entry, key), "train: {steps: 100, lr: 1.0e-4}"]
    if "retain" in entry.card.needs.handles:
        lines[1] = "data: {train: FILE, retain: FILE}"
    if entry.short in READERS:
        lines.insert(2, f"objective: {READERS[entry.short]}")
    return "\n".join(lines) + "\n"


def beginning(entry: Entry, key: str, value: str) -> list[str]:
    """The lines of a recipe from its model to the technique, and the objective where the technique is none."""
    handles = entry.card.needs.handles
    if entry.room == "diffusion" or any(b.startswith("image") for b in entry.card.needs.batch):
        reward = ["reward: {world_reward: {which: templates}}"] if "reward" in handles else []
        loss = ["objective: draft" if key == "reward" else "objective: denoise"] if key != "objective" else []
        return ["model: lab:image", "data: lab:image", f"{key}: {value}", *reward, *loss]
    if key == "steps":
        return ["model: MODEL", f"data: {{train: FILE, steps: {value}}}"]
    loss = ["objective: grpo"] if key == "reward" or "sampler" in handles else []
    used = "reward: [exact, {format: {weight: 0.2}}]" if entry.id == "reward.combine.weighted" else f"{key}: {value}"
    return ["model: MODEL", "data: FILE", *loss, used]


def partners(entry: Entry, key: str) -> list[str]:
    """The lines of a recipe for what the technique asks of others."""
    needs, out = entry.card.needs, []
    if "ema" in needs.handles:
        out.append("regularise: [ema]")
    if needs.adapt:
        out.append(f"adapt: {ADAPTED[needs.adapt]}")
    if (key == "loop" and "reward" in needs.handles) or needs.batch == ("group",):
        out.append("reward: exact")
    if "teacher" in needs.handles:
        out.append("teacher: MODEL")
    if "embed" in needs.handles:
        out.append("embedder: minilm")
    others = [h for h in needs.handles if h != "base"] if entry.room == "decode" else []
    if others:
        out.append(f"decode_models: {{{', '.join(f'{h}: MODEL' for h in others)}}}")
    return out


def usage(entry: Entry) -> str:
    """How to use the technique, in a recipe or from Python."""
    name, _ = component_class(entry.path)
    if not entry.id.startswith(PYTHON_ONLY):
        kind = "a merge recipe, for `luthier merge`" if entry.room == "merge" else "a recipe"
        return f"In {kind}:\n\n```yaml\n{recipe(entry)}```\n\nFrom Python: `from luthier.{entry.id} import {name}`."
    given = ", ".join(f"{p.name}={PYTHON_EXAMPLES[p.name]}" for p in entry.parameters if p.default is None)
    told = "It is used from Python: see its docstring for what to hand it."
    if entry.room == "diffusion":
        told = "It is a parameter of objectives and samplers, or follows from the model's scheduler."
    return f"{told}\n\n```python\nfrom luthier.{entry.id} import {name}\n\nmade = {name}({given})\n```"
