import re
from pathlib import Path

import pytest
import torch

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import estimates, memory, shape
from gpt2_rlhf.models.estimates import Estimate
from gpt2_rlhf.models.memory import Lengths
from helpers.overrides import changed

GPT2 = compose.load(["model=gpt2_random"]).settings
ROWS = Lengths(rows=800, prompt=20.0, answer=10.0, longest=50, spread=0.0)
TABLES: dict[str, Lengths] = dict.fromkeys(("sft", "reward", "judge", "ppo", "test"), ROWS)
BATCH, ACCUMULATED = "sft.args.per_device_train_batch_size", "sft.args.gradient_accumulation_steps"


def needed(*overrides: str, name: str = "sft", processes: int = 1) -> memory.Memory:
    chosen = changed(GPT2, *overrides)
    return memory.peak(name, chosen, shape.of(chosen.model), TABLES, processes, on_gpu=False)


def require(*overrides: str, name: str = "sft", processes: int = 1, here: int | None = None) -> None:
    found = {name: Estimate(rows=800, updates=1, memory=needed(*overrides, name=name), seconds=1.0)}
    estimates.require_memory([name], found, changed(GPT2, *overrides), TABLES, processes, here or processes, 1)


def free(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "free_bytes", lambda: (int(size), False))


def test_too_little_memory_is_refused_with_three_settings_and_the_figure_that_each_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(1e9, monkeypatch)
    with pytest.raises(UserError) as refused:
        require()
    line = str(refused.value)
    size = memory.in_words(needed().total)
    assert line.startswith(
        f"sft needs about {size} of memory, but this machine has 1.0 GB free; set what lowers it most"
    )
    named = re.findall(r"((?:[\w.]+=\w+ ?)+) \(([\d.]+ [GM]B)\)", line)
    assert len(named) == 3
    sizes = [needed(*text.split()).total for text, _ in named]
    assert [figure for _, figure in named] == [memory.in_words(size) for size in sizes]
    others = [needed(f"{BATCH}=1", f"{ACCUMULATED}=8"), needed("sft.args.activation_checkpointing=true")]
    assert sizes == sorted(sizes)
    assert max(sizes) <= min(other.total for other in others)


def test_the_largest_batch_that_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    free(needed(f"{BATCH}=16").total + 1, monkeypatch)
    with pytest.raises(UserError, match=f"{BATCH}=16 {ACCUMULATED}=4 "):
        require(f"{BATCH}=64")


def test_force_says_it_and_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    free(1e9, monkeypatch)
    require("force=true")
    assert capsys.readouterr().out == (
        f"sft needs about {memory.in_words(needed().total)} of memory, but this machine has 1.0 GB free\n"
    )


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free(needed().total + 1, monkeypatch)
    require()
    with pytest.raises(UserError, match=r"launch\.processes=1"):
        require("launch.processes=2", processes=2)


def test_processes_on_another_machine_need_none_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free(needed().total + 1, monkeypatch)
    require(processes=2, here=1)
    free(needed().total - 1, monkeypatch)
    with pytest.raises(UserError) as refused:
        require(processes=2, here=1)
    of_one = memory.in_words(needed("sft.peft.r=8", processes=2).total)
    assert f"sft.peft.r=8 ({of_one})" in str(refused.value)


def test_stages_side_by_side_need_the_sum_of_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: needed(name=name) for name in ("reward", "judge", "ppo")}
    found = {name: Estimate(rows=800, updates=1, memory=size, seconds=1.0) for name, size in sizes.items()}
    names = ["reward", "judge", "ppo", "ppo", "ppo"]
    free(2 * sizes["ppo"].total - 1, monkeypatch)
    estimates.require_memory(names, found, GPT2, TABLES, 1, 1, at_once=1)
    with pytest.raises(
        UserError, match=r"^ppo and ppo side by side need about .*; build one after the other: launch.threads=null"
    ):
        estimates.require_memory(names, found, GPT2, TABLES, 1, 1, at_once=2)


def test_a_sharded_run_is_asked_for_nothing_that_sharding_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    free(1e9, monkeypatch)
    one = r"launch\.processes=1 launch\.sharded=false \("
    with pytest.raises(UserError, match=one) as refused:
        require("launch.processes=2", "launch.sharded=true", f"{BATCH}=1", "sft.peft.r=4", processes=2)
    assert "adafactor" not in str(refused.value)


def test_ppo_may_be_asked_to_do_without_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("ppo.peft.r=4", "ppo.args.per_device_train_batch_size=1", "ppo.args.optim=adafactor")  # are set already
    free(needed(*others, name="ppo").total - 1, monkeypatch)
    with pytest.raises(UserError, match=r"data\.shares\.judge=0\.0 \("):
        require(*others, name="ppo")


@pytest.mark.parametrize(("gpu_has_it", "expected"), [(True, [True, False, False]), (False, [False, False, False])])
def test_half_precision_is_assumed_where_the_gpu_has_it_and_nothing_else_is_set(
    gpu_has_it: bool, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_has_it)
    settings = changed(
        GPT2, "sft.args.bf16=null", "reward.args.bf16=null", "reward.args.fp16=true", "ppo.args.bf16=false"
    )
    found = estimates.with_precision(settings)
    assert [part.args["bf16"] for part in (found.sft, found.reward, found.ppo)] == expected


def test_a_limit_of_the_container_counts_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\n")
    monkeypatch.setattr(estimates, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(estimates, "_CGROUP", tmp_path)
    assert estimates.free_bytes() == (5000 * 1024, False)
    (tmp_path / "memory.max").write_text("max\n")
    assert estimates.free_bytes() == (5000 * 1024, False)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 900000\n")
    assert estimates.free_bytes() == (2_000_000, False)
    monkeypatch.setattr(estimates, "_MEMINFO", tmp_path / "none")  # another system than Linux
    assert estimates.free_bytes() == (None, False)
