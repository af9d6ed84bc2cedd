"""What each stage will take, before it starts: updates, memory and time; what does not fit in memory is refused."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpt2_rlhf.config import methods
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings, with_value
from gpt2_rlhf.models import memory, shape
from gpt2_rlhf.models.durations import Durations, updates
from gpt2_rlhf.models.memory import Lengths, Memory, in_words
from gpt2_rlhf.store.stage import TRAINED

_SETTINGS_NAMED = 3
_SIDE_BY_SIDE = (("reward", "judge", "dpo"), ("ppo",), ("rloo",))  # stages that do not need each other
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Estimate:
    """What one stage will take; None where it does not apply. seconds: with all cores, or the device."""

    rows: int
    updates: int | None
    memory: Memory | None
    seconds: float


def of(names: Sequence[str], settings: Settings, tables: Mapping[str, Lengths], processes: int) -> dict[str, Estimate]:
    """Return the estimates of stages other than data; parts of the model are timed for it, on a GPU if there is one."""
    settings = with_precision(settings)
    if settings.launch.threads is not None:
        torch.set_num_threads(settings.launch.threads)
    model = shape.of(settings.model)
    durations = Durations(settings, model, tables, processes)
    on_gpu = durations.machine.device.type != "cpu"
    seconds = {name: durations.seconds(name) for name in names}
    rows = {name: tables[methods.table_of(name) if name in TRAINED else "test"].rows for name in names}
    return {
        name: Estimate(
            rows=rows[name],
            updates=updates(name, settings, rows[name], processes) if name in TRAINED else None,
            memory=memory.peak(name, settings, model, tables, processes, on_gpu) if name in TRAINED else None,
            seconds=seconds[name] * durations.machine.pace,
        )
        for name in names
    }


def require_memory(
    names: Sequence[str],
    found: Mapping[str, Estimate],
    settings: Settings,
    tables: Mapping[str, Lengths],
    processes: int,
    here: int,
    at_once: int,
) -> None:
    """Refuse stages that need more memory than the device has free; with force=true, print why and go on.

    names: the stages that will be built, one with several seeds as often. here: how many of the processes are on this
    machine. at_once: how many stages may run side by side.

    Raises:
        UserError: names the stage, both figures, and the settings that would lower its figure most.
    """
    settings = with_precision(settings)
    free, on_gpu = free_bytes()
    if free is None:
        return
    sharing = 1 if on_gpu else here  # each process has a GPU of its own

    def require(what: str, names: Sequence[str], remedies: Callable[[], str]) -> None:
        if (size := sharing * _bytes(names, found)) <= free:
            return
        place = "the GPU" if on_gpu else "this machine"
        line = f"{what} about {in_words(size)} of memory, but {place} has {in_words(free)} free"
        if not settings.force:
            raise UserError(f"{line}; {remedies()}; or try it with force=true")
        print(line, flush=True)

    for name in dict.fromkeys(names):
        require(f"{name} needs", [name], partial(_remedies, name, settings, tables, (processes, here), on_gpu, free))
    groups = ([name for name in names if name in group][:at_once] for group in _SIDE_BY_SIDE)
    largest = max(groups, key=lambda group: _bytes(group, found))
    if len(largest) > 1:
        together = f"{' and '.join(largest)} side by side need"
        require(together, largest, lambda: "build one after the other: launch.threads=null")


def _bytes(names: Sequence[str], found: Mapping[str, Estimate]) -> float:
    return sum(size.total for name in names if (size := found[name].memory) is not None)


def with_precision(settings: Settings) -> Settings:
    """Return the settings with the bf16 that null stands for on this machine, as launch.training decides it."""
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    for stage, part in settings.training.items():
        if part.args.get("bf16") is None:
            settings = with_value(settings, f"{stage}.args.bf16", half and not part.args.get("fp16"))
    return settings


def free_bytes() -> tuple[int | None, bool]:
    """Return the free bytes where models train, None if the system does not tell, and whether that is a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], True
    try:
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None, False
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit
        return free, False
    return min(free, limit - int(used["anon"])), False


def device() -> str:
    """Return what trains, with its free memory."""
    free, on_gpu = free_bytes()
    name = torch.cuda.get_device_name() if on_gpu else f"CPU (threads: {torch.get_num_threads()})"
    return name if free is None else f"{name}, {in_words(free)} of memory free"


def _remedies(
    name: str, settings: Settings, tables: Mapping[str, Lengths], processes: tuple[int, int], on_gpu: bool, free: int
) -> str:
    """Return the changes of settings that lower the figure most, as overrides, each with the figure it gives.

    processes: all, and those on this machine.
    """
    model = shape.of(settings.model)

    def needed(change: Mapping[str, Any]) -> float:
        changed = settings
        for key, value in change.items():
            changed = with_value(changed, key, value)
        asked = changed.launch.processes
        every, here = (asked, asked) if settings.launch.processes > 1 else processes
        return memory.peak(name, changed, model, tables, every, on_gpu).total * (1 if on_gpu else here)

    found = []
    for changes in _changes(name, settings, on_gpu):
        sizes = [(needed(change), change) for change in changes]
        found.append(next((one for one in sizes if one[0] <= free), sizes[-1]))
    best = sorted((one for one in found if one[0] < needed({})), key=lambda one: one[0])[:_SETTINGS_NAMED]
    texts = [(" ".join(f"{key}={str(value).lower()}" for key, value in change.items()), size) for size, change in best]
    named = ", ".join(f"{text} ({in_words(size)})" for text, size in texts) or "choose a smaller model"
    return f"set what lowers it most: {named}"


def _changes(name: str, settings: Settings, on_gpu: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield changes of one kind each, the smallest first; the rows of an optimizer step stay the same."""
    stage = "reward" if name == "judge" else name
    part: Any = settings.training[stage]
    batch, accumulated = f"{stage}.args.per_device_train_batch_size", f"{stage}.args.gradient_accumulation_steps"
    rows, steps = part.args["per_device_train_batch_size"], part.args["gradient_accumulation_steps"]
    if rows > 1:
        yield [{batch: fewer, accumulated: rows * steps // fewer} for fewer in _halves(rows)]
    if part.peft.r == 0:
        yield [{f"{stage}.peft.r": 8}]
    if "adam" in part.args.get("optim", "adamw") and not settings.launch.sharded:  # which Adafactor does not allow for
        yield [{f"{stage}.args.optim": "adafactor"}]
    if on_gpu and not part.args.get("bf16"):
        yield [{f"{stage}.args.bf16": True}]
    if stage != "ppo" and not part.args["activation_checkpointing"]:
        yield [{f"{stage}.args.activation_checkpointing": True}]
    if stage == "ppo" and settings.data.has_judge:
        yield [{"data.shares.judge": 0.0}]
    if stage == "ppo":
        at_once = "local_rollout_forward_batch_size"
        yield [{f"ppo.args.{at_once}": fewer} for fewer in _halves(part.args[at_once])]
    yield [{"evaluate.batch_size": fewer} for fewer in _halves(settings.evaluate.batch_size)]
    if settings.launch.processes > 1 and not settings.launch.sharded:
        yield [{"launch.sharded": True}]
    if settings.launch.processes > 1 and not on_gpu:
        whole = {"launch.sharded": False} if settings.launch.sharded else {}
        yield [{"launch.processes": n, **(whole if n == 1 else {})} for n in _halves(settings.launch.processes)]


def _halves(number: int) -> list[int]:
    return [number // 2**power for power in range(1, number.bit_length())] or [number]
