"""Compare the speed and memory of our training with stock TRL's on this machine.

    python -m benchmarks.bench [comparison ...] [--hh FOLDER] [--updates N] [--write FILE.md]

Each side of a comparison runs in its own process, so that its peak memory can be measured. The sides take turns, one
update each: the speed of a shared machine changes over time, but little between neighbouring updates. This process
imports neither torch nor TRL, because on Linux the peak memory of a child is never below that of its parent.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import exit_with_one_line

SIDES = ("stock", "ours")

_MEDIUM = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 384, "n_layer": 6, "n_head": 6}
_GPT2 = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
# Arguments that differ from those of quickstart, which `make pipeline` uses. With as many mini-batches as quickstart,
# stock TRL would take other steps than ours (huggingface/trl#5645).
_PPO_SMALL = {"num_mini_batches": 2, "num_ppo_epochs": 2}
_PPO_MEDIUM = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 4,
    "local_rollout_forward_batch_size": 4,
}
_PPO_GPT2 = {
    **_PPO_MEDIUM,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 2,
    "local_rollout_forward_batch_size": 8,
}


@dataclass(frozen=True)
class Comparison:
    """One trainer, one model and one kind of rows; both sides get the same three."""

    kind: str  # "ppo", "sft" or "reward"
    shape: dict[str, int] | None  # GPT2Config sizes for random weights; None: the bundled model
    prompt_tokens: tuple[int, int] | None  # range of the lengths of random prompts; None: the bundled data
    reads_hh: bool  # with --hh, take rows from its folder instead of random ones
    args: dict[str, Any]


COMPARISONS = {
    "ppo-small": Comparison("ppo", None, None, False, _PPO_SMALL),
    "ppo-medium": Comparison("ppo", _MEDIUM, (42, 128), False, _PPO_MEDIUM),
    "ppo-gpt2": Comparison("ppo", _GPT2, (42, 512), True, _PPO_GPT2),
    "sft-small": Comparison("sft", None, None, False, {}),
    "sft-medium": Comparison("sft", _MEDIUM, (42, 512), True, {"per_device_train_batch_size": 8}),
    "reward-small": Comparison("reward", None, None, False, {}),
    "reward-medium": Comparison("reward", _MEDIUM, (42, 512), True, {"per_device_train_batch_size": 8}),
}


@dataclass(frozen=True)
class Side:
    """Wall and CPU seconds of each update of one side, after its warm-up update."""

    wall_s: list[float]
    cpu_s: list[float]
    peak_mib: float  # of the process, or of the GPU where there is one
    losses: list[float]  # of SFT or the reward model, from the warm-up update to the last but one; empty for PPO


@dataclass(frozen=True)
class Result:
    """Both sides of one comparison. Ratios are stock over ours: above 1, ours is faster."""

    name: str
    about: str  # sizes of model, rows and batch
    stock: Side
    ours: Side

    @property
    def wall_ratio(self) -> float:
        """Return the ratio of the median wall seconds of an update."""
        return statistics.median(self.stock.wall_s) / statistics.median(self.ours.wall_s)

    @property
    def cpu_ratio(self) -> float:
        """Return the ratio of the median CPU seconds of an update; other programs disturb it less than wall time."""
        return statistics.median(self.stock.cpu_s) / statistics.median(self.ours.cpu_s)

    @property
    def pair_ratios(self) -> list[float]:
        """Return the ratio of each stock update to our update that followed it."""
        return [stock / ours for stock, ours in zip(self.stock.wall_s, self.ours.wall_s, strict=True)]

    @property
    def loss_difference(self) -> float | None:
        """Return the largest difference between both sides' losses; None for PPO, whose sides sample other answers."""
        pairs = zip(self.stock.losses, self.ours.losses, strict=True)
        return max((abs(stock - ours) for stock, ours in pairs), default=None)


def compare(name: str, comparison: Comparison, updates: int, hh: str | None) -> Result:
    """Return the measurements of both sides, which take turns after one warm-up update each; print each turn.

    Raises:
        UserError: the process of a side ended early.
    """
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(_Worker(comparison, name, side, updates, hh)) for side in SIDES
        }  # both start at once; while they train, only one works at a time
        about = {side: worker.answer()["about"] for side, worker in workers.items()}
        turns: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        started = time.monotonic()
        for update in range(updates + 1):
            for side, worker in workers.items():
                turns[side].append(worker.request("update"))
            eta_s = (time.monotonic() - started) / (update + 1) * (updates - update)
            seconds = "  ".join(f"{side} {turns[side][-1]['wall_s']:.2f} s" for side in SIDES)
            turn = f"update {update}/{updates}" if update else "warm-up"
            print(f"  {name} {turn}  {seconds}  eta {eta_s:.0f} s", file=sys.stderr, flush=True)
        sides = {}
        for side, worker in workers.items():
            end = worker.request("stop")
            measured = turns[side][1:]
            sides[side] = Side(
                wall_s=[turn["wall_s"] for turn in measured],
                cpu_s=[turn["cpu_s"] for turn in measured],
                peak_mib=end["peak_mib"],
                losses=end["losses"],
            )
    return Result(name, about["ours"], sides["stock"], sides["ours"])


class _Worker:
    """The process of one side: it trains one update per request and answers with one line of JSON."""

    def __init__(self, comparison: Comparison, name: str, side: str, updates: int, hh: str | None) -> None:
        self._label = f"the process of {side} in {name}"
        task = {"comparison": asdict(comparison), "side": side, "updates": updates, "hh": hh}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bench_worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def request(self, word: str) -> dict[str, Any]:
        """Send one word, "update" or "stop", and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Read the next line of JSON."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            cause = "most likely for lack of memory" if code == -9 else "see its message above"
            raise UserError(f"bench: {self._label} ended with code {code}, {cause}; name fewer or smaller comparisons")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"bench: {answer['error']}")
        return answer


def machine() -> dict[str, str | int]:
    """Return what the figures depend on: processor, cores, threads, GPU, versions and date."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    packages = ("torch", "transformers", "trl")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "gpu": _gpu() or "no GPU",
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _gpu() -> str | None:
    script = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def markdown(results: Sequence[Result], where: dict[str, str | int], command: str) -> str:
    """Return the figures as a page: where they were measured, and a table with one row per comparison."""
    rows = [
        "| Comparison | Stock TRL, s | Ours, s | Faster | of each pair | CPU time | Stock, MiB | Ours, MiB | Losses |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(result) for result in results),
    ]
    gpu = "Measured without a GPU."
    if where["gpu"] != "no GPU":
        gpu = "All arguments set bfloat16, which stock PPO ignores. Memory is that of the GPU."
    return f"""# Stock TRL and ours, in one run

{where["cpu"]}, {where["cores"]} cores (OMP_NUM_THREADS {where["threads"]}), {where["gpu"]}; {where["versions"]}; \
{where["date"]}; `{command}`

Both sides get the same models, rows and arguments. Each runs in its own process. They take turns, one update each,
after one to warm up. Seconds are the median of an update. "Faster" is the ratio of the medians, "of each pair" the
smallest and largest ratio of two neighbouring updates, "CPU time" the ratio of CPU seconds. MiB are the peak of the
process. "Losses" is the largest difference between the losses of the sides; in PPO they sample other answers. {gpu}

{chr(10).join(rows)}

{chr(10).join(f"- {result.name}: {result.about}" for result in results)}
"""


def _row(result: Result) -> str:
    low, high = min(result.pair_ratios), max(result.pair_ratios)
    difference = result.loss_difference
    cells = [
        result.name,
        f"{statistics.median(result.stock.wall_s):.3g}",
        f"{statistics.median(result.ours.wall_s):.3g}",
        f"{result.wall_ratio:.2f}x",
        f"{low:.2f} to {high:.2f}",
        f"{result.cpu_ratio:.2f}x",
        f"{result.stock.peak_mib:.0f}",
        f"{result.ours.peak_mib:.0f}",
        "-" if difference is None else f"{difference:.1g}",
    ]
    return f"| {' | '.join(cells)} |"


def record(results: Sequence[Result], where: dict[str, str | int], command: str) -> dict[str, Any]:
    """Return the figures for JSON, with the ratios worked out."""
    return {
        "command": command,
        "machine": where,
        "comparisons": [
            {
                **asdict(result),
                "wall_ratio": result.wall_ratio,
                "cpu_ratio": result.cpu_ratio,
                "pair_ratios": result.pair_ratios,
                "loss_difference": result.loss_difference,
            }
            for result in results
        ],
    }


def main(argv: Sequence[str]) -> None:
    """Run the named comparisons, or all; print the page, and write it with its JSON to --write.

    Raises:
        UserError: a comparison does not exist, the folder of --hh cannot be read, or a side failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench", description="Compare the speed of stock TRL with ours."
    )
    parser.add_argument("names", nargs="*", metavar="comparison", help=f"default: all of {' '.join(COMPARISONS)}")
    parser.add_argument(
        "--hh", metavar="FOLDER", help="pairs as in Anthropic/hh-rlhf, for ppo-gpt2, sft-medium, reward-medium"
    )
    parser.add_argument("--updates", type=int, default=5, help="measured updates per side")
    parser.add_argument(
        "--write", metavar="FILE.md", type=Path, help="where to write the page, with its JSON beside it"
    )
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in COMPARISONS:
            raise UserError(f"bench: there is no comparison {name!r}; expected some of {' '.join(COMPARISONS)}")
    if options.updates < 1:
        raise UserError(f"bench --updates: {options.updates}; expected 1 or more")
    if options.hh is not None and not Path(options.hh).is_dir():
        raise UserError(f"bench --hh: {options.hh} is not a folder; give one with train.jsonl.gz and test.jsonl.gz")

    where, names = machine(), options.names or list(COMPARISONS)
    results = [compare(name, COMPARISONS[name], options.updates, options.hh) for name in names]
    # the page must not name folders of this machine
    given = [word if options.hh is None else word.replace(options.hh, "FOLDER") for word in argv]
    command = shlex.join(["python", "-m", "benchmarks.bench", *given])
    page = markdown(results, where, command)
    print(page, flush=True)
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(page, encoding="utf-8")
        figures = json.dumps(record(results, where, command), indent=1)
        options.write.with_suffix(".json").write_text(f"{figures}\n", encoding="utf-8")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(sys.argv[1:]))
