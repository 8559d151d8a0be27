"""Devices, precision and processes through accelerate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from luthier.core.device import fastest
from luthier.core.errors import MissingExtra, Refused, sentence

MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
MPI_LOCAL = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


def make_accelerator(precision: str = "fp32", tracker: str = "none", folder: str | None = None) -> Any:
    """An accelerate.Accelerator for this process; state of an earlier run in the same process is dropped.

    precision: fp32, bf16 or fp16 (autocast). tracker: where logged figures go besides the run's own files; folder: its files.
    It stands on the device that `core.device.fastest` names. FSDP2 comes from `train.shard`, or from the settings of `accelerate
    launch`. Several processes without a GPU talk over gloo.
    Raises Refused under DeepSpeed, whose engine takes the step out of the loop's hands, and where a launcher's processes do not
    form one run.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes"):
        raise Refused(sentence("training in several processes", "plain copies (DDP) or shards (FSDP2)", "a launch with DeepSpeed",
                               "Launch without it and set train.shard: true, which spreads weights, gradients and optimiser state "
                               "as ZeRO-3 does"))  # fmt: skip
    if launched_alone(os.environ):
        raise Refused(sentence("accelerate launch --cpu", "one process, as it starts no more without mpirun", "--num_processes above 1",
                               "Leave --cpu out and add --multi_gpu: without a GPU the processes train on the CPU"))  # fmt: skip
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    size = started(os.environ)
    mixed = "no" if precision == "fp32" else precision
    AcceleratorState._reset_state()
    told = None if tracker == "none" else tracker
    if told is not None and find_spec(told) is None:
        raise MissingExtra(f"train.tracker: {tracker}", tracker, "trackers")
    cpu = fastest().type == "cpu"
    if size > 1 and cpu and not os.environ.get("MASTER_ADDR"):  # mpirun names no place to meet
        if str(size) not in (os.environ.get(k) for k in MPI_LOCAL):
            raise Refused(sentence("training on several machines", "MASTER_ADDR, the name of the first one", "none",
                                   "Export it on all of them"))  # fmt: skip
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    accelerator = Accelerator(mixed_precision=mixed, cpu=cpu, log_with=told, project_dir=folder if told else None)
    if size > 1 and accelerator.num_processes != size:
        raise Refused(sentence("training in several processes", f"all {size} that were started", f"{accelerator.num_processes}, as "
                               f"accelerate sees no way to join them on {accelerator.device.type}",
                               "Set ACCELERATE_USE_CPU=true to train on the CPU"))  # fmt: skip
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise Refused(sentence("train.precision: fp16", "a GPU", "the CPU", "Use bf16, which needs no scaling of the loss"))
    if told is not None:
        accelerator.init_trackers("luthier")
    return accelerator


def started(environment: Mapping[str, str]) -> int:
    """How many processes a launcher says that it started: torchrun, accelerate launch, mpirun.

    >>> started({"OMPI_COMM_WORLD_SIZE": "2"}), started({})
    (2, 1)
    """
    return next((int(environment[k]) for k in ("WORLD_SIZE", *MPI) if environment.get(k)), 1)


def launched_alone(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes and has started this one alone.

    It names a meeting place only when asked for several, and tells a process its number only when it starts several.
    """
    asked = all(environment.get(k) for k in ("ACCELERATE_DYNAMO_MODE", "MASTER_ADDR", "MASTER_PORT"))
    cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return asked and cpu and not any(k in environment for k in ("RANK", "WORLD_SIZE", *MPI))
