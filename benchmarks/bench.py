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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import exit_with_one_line

SIDES = ("stock", "ours")

# Peak of matrix products of bfloat16 with sums in float32, without sparsity, in FLOP/s, by NVIDIA's data sheets; by the
# name that torch gives the device. A utilisation is not computed for others.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}

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
# Both sides at once in the memory of a laptop
_PPO_MODEL = {**_PPO_GPT2, "per_device_train_batch_size": 2, "local_rollout_forward_batch_size": 4}


@dataclass(frozen=True)
class Comparison:
    """One trainer, one model and one kind of rows; both sides get the same three."""

    kind: str  # "ppo", "sft" or "reward"
    shape: dict[str, int] | None  # GPT2Config sizes for random weights; None: the model in `folder`
    prompt_tokens: tuple[int, int] | None  # range of the lengths of random prompts; None: the bundled data
    reads_hh: bool  # with --hh, take rows from its folder instead of random ones
    args: dict[str, Any]
    folder: str | None = None  # of the model; None: the bundled one


COMPARISONS = {
    "ppo-small": Comparison("ppo", None, None, False, _PPO_SMALL),
    "ppo-medium": Comparison("ppo", _MEDIUM, (42, 128), False, _PPO_MEDIUM),
    "ppo-gpt2": Comparison("ppo", _GPT2, (42, 512), True, _PPO_GPT2),
    "sft-small": Comparison("sft", None, None, False, {}),
    "sft-medium": Comparison("sft", _MEDIUM, (42, 512), True, {"per_device_train_batch_size": 8}),
    "reward-small": Comparison("reward", None, None, False, {}),
    "reward-medium": Comparison("reward", _MEDIUM, (42, 512), True, {"per_device_train_batch_size": 8}),
    "sft-gpt2": Comparison("sft", _GPT2, (42, 512), True, {"per_device_train_batch_size": 8}),
    "reward-gpt2": Comparison("reward", _GPT2, (42, 512), True, {"per_device_train_batch_size": 8}),
    "sft-model": Comparison("sft", None, (1, 512), True, {"per_device_train_batch_size": 8}),
    "reward-model": Comparison("reward", None, (1, 512), True, {"per_device_train_batch_size": 8}),
    "ppo-model": Comparison("ppo", None, (1, 512), True, _PPO_MODEL),
}
_ON_GPU = ("sft-gpt2", "reward-gpt2")  # too slow for a CPU; there they run if they are named
_OF_MODEL = ("sft-model", "reward-model", "ppo-model")  # the model of --model on the rows of --hh

NO_GPU = """## On a GPU

[benchmarks_gpu.md](benchmarks_gpu.md) has figures of one H100. To measure PPO, SFT and the reward model on GPT-2
124M, in bfloat16 where the GPU has it:

```bash
python -m benchmarks.bench ppo-gpt2 sft-gpt2 reward-gpt2 --hh FOLDER --updates 7 --write gpu.md
```

It writes seconds, tokens a second, MFU and the GPU's memory, with its name and the precision.
"""


@dataclass(frozen=True)
class Side:
    """Wall and CPU seconds of each update of one side, after its warm-up update."""

    wall_s: list[float]
    cpu_s: list[float]
    tokens: list[int]  # of the rows of each update, without padding; in PPO of prompts and answers
    peak_mib: float  # of the process, or of the GPU where there is one
    losses: list[float]  # of SFT or the reward model, from the warm-up update to the last but one; empty for PPO

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens of all measured updates over their wall seconds."""
        return sum(self.tokens) / sum(self.wall_s)


@dataclass(frozen=True)
class Result:
    """Both sides of one comparison. Ratios are stock over ours: above 1, ours is faster."""

    name: str
    about: str  # sizes of model, rows and batch
    stock: Side
    ours: Side
    flops_per_token: float  # that our warm-up update computed; padding, which stock computes too, is no useful work

    def utilisation(self, side: Side, gpu: str) -> float | None:
        """Return a side's useful FLOP/s over the GPU's peak (MFU), or None where the peak is unknown."""
        peak = PEAK_FLOPS.get(gpu)
        return None if peak is None else side.tokens_per_s * self.flops_per_token / peak

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
        sides, flops_per_token = {}, 0.0
        for side, worker in workers.items():
            end = worker.request("stop")
            measured = turns[side][1:]
            sides[side] = Side(
                wall_s=[turn["wall_s"] for turn in measured],
                cpu_s=[turn["cpu_s"] for turn in measured],
                tokens=[int(turn["tokens"]) for turn in measured],
                peak_mib=end["peak_mib"],
                losses=end["losses"],
            )
            flops_per_token = end["flops_per_token"] or flops_per_token
    return Result(name, about["ours"], sides["stock"], sides["ours"], flops_per_token)


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
    """Return what the figures depend on: processor, cores, threads, GPU, precision, versions and date."""
    gpu, dtype = _found_device()
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    packages = ("torch", "transformers", "trl")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "gpu": gpu,
        "dtype": dtype,
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def device() -> tuple[str, str]:
    """Return the GPU's name, or that there is none, and the type in which both sides are told to train."""
    import torch  # not in the main process, whose memory would count as that of the sides

    if not torch.cuda.is_available():
        return "no GPU", "float32"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cuda.get_device_name(), "bfloat16" if has_bf16 else "float32"


def _found_device() -> tuple[str, str]:
    script = "from benchmarks.bench import device; print(*device(), sep='\\n')"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    gpu, dtype = found.stdout.splitlines()[-2:]
    return gpu, dtype


def markdown(results: Sequence[Result], where: dict[str, str | int], command: str) -> str:
    """Return the figures as a page: where they were measured, and a table with one row per comparison."""
    rows = [
        "| Comparison | Stock TRL, s | Ours, s | Faster | of each pair | CPU time | Stock, MiB | Ours, MiB | Losses "
        "| Stock, tokens/s | Ours, tokens/s | Stock, MFU | Ours, MFU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(result, str(where["gpu"])) for result in results),
    ]
    gpu, note = "Measured without a GPU, so MFU is not known.", f"\n{NO_GPU}"
    if where["gpu"] != "no GPU":
        gpu = (
            "Memory is that of the GPU. MFU is FLOP/s over its peak in bfloat16; FLOPs are those that our warm-up "
            "update computed for each token."
        )
        note = ""
        if where["dtype"] == "bfloat16":
            gpu += " All arguments set bfloat16, which stock PPO ignores."
    return f"""# Stock TRL and ours, in one run

{where["cpu"]}, {where["cores"]} cores (OMP_NUM_THREADS {where["threads"]}), {where["gpu"]}, \
{where["dtype"]}; {where["versions"]}; \
{where["date"]}; `{command}`

Both sides get the same models, rows and arguments. Each runs in its own process. They take turns, one update each,
after one to warm up. Seconds are the median of an update. "Faster" is the ratio of the medians, "of each pair" the
smallest and largest ratio of two neighbouring updates, "CPU time" the ratio of CPU seconds. On a CPU with one thread
our PPO computes two models at the same time, on two cores: compare its CPU time. MiB are the peak of the
process. "Losses" is the largest difference between the losses of the sides; in PPO they sample other answers. Tokens
are those of the rows, without padding. {gpu}

{chr(10).join(rows)}

{chr(10).join(f"- {result.name}: {result.about}" for result in results)}
{note}"""


def _row(result: Result, gpu: str) -> str:
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
        *(f"{side.tokens_per_s:.0f}" for side in (result.stock, result.ours)),
        *("-" if share is None else f"{100 * share:.1f} %" for share in _utilisations(result, gpu)),
    ]
    return f"| {' | '.join(cells)} |"


def _utilisations(result: Result, gpu: str) -> list[float | None]:
    return [result.utilisation(side, gpu) for side in (result.stock, result.ours)]


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
                "tokens_per_s": {side: getattr(result, side).tokens_per_s for side in SIDES},
                "mfu": dict(zip(SIDES, _utilisations(result, str(where["gpu"])), strict=True)),
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
    parser.add_argument(
        "names",
        nargs="*",
        metavar="comparison",
        help=f"default: all of {' '.join(COMPARISONS)}; without --model all but *-model, without a GPU all but "
        f"{' and '.join(_ON_GPU)}",
    )
    parser.add_argument(
        "--hh",
        metavar="FOLDER",
        help="pairs as in Anthropic/hh-rlhf, for *-gpt2, sft-medium, reward-medium, *-model",
    )
    parser.add_argument("--model", metavar="FOLDER", help="a causal language model of any family, for *-model")
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
    if options.model is not None and not Path(options.model, "config.json").is_file():
        raise UserError(f"bench --model: {options.model} has no config.json; give the folder of a model")
    has_model = options.model is not None and options.hh is not None
    if not has_model and (asked := [name for name in options.names if name in _OF_MODEL]):
        raise UserError(f"bench: {asked[0]} needs a model and rows; give --model FOLDER and --hh FOLDER")

    where = machine()
    left_out = (*(() if has_model else _OF_MODEL), *(_ON_GPU if where["gpu"] == "no GPU" else ()))
    names = options.names or [name for name in COMPARISONS if name not in left_out]
    chosen = {name: replace(COMPARISONS[name], folder=options.model if name in _OF_MODEL else None) for name in names}
    results = [compare(name, one, options.updates, options.hh) for name, one in chosen.items()]
    # the page must not name folders of this machine
    given = list(argv)
    for path in filter(None, (options.hh, options.model, options.write)):
        shown = "FOLDER" if path == options.hh else Path(path).name
        given = [word.replace(str(path), shown) for word in given]
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
