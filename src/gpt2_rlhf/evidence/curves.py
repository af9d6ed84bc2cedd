"""Turn what a PPO run logged into one picture: whether the reward it gained is real, and whether training was sound.

Training figures come from metrics.jsonl, held-out ones from the files of ppo_measured, whose points are few and marked.
What was not measured is named in its panel: an absent line must not read as zero. The report draws with the same pen.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gpt2_rlhf.evidence import measured
from gpt2_rlhf.evidence.measured import Measured

FILE = "ppo.png"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito's, apart for the colour-blind too
MARKERS = "osD^v"

Records = Sequence[Mapping[str, Any]]  # what was logged, a step each

# panel -> label -> metric; "eval/" metrics are of held-out prompts. One colour a row, in the order here.
PANELS: dict[str, dict[str, str]] = {
    "Reward": {
        "training": "objective/unshaped_scores",
        "held-out": "eval/reward",
        "judge": "eval/judge_reward",
        "utility": "eval/utility",
    },
    "KL to SFT, nats per answer": {
        "training, k1": "objective/kl_k1",
        "training, k3": "objective/kl_k3",
        "held-out, exact": "eval/kl_nats",
        "held-out, k1": "eval/kl_k1",
        "held-out, k3": "eval/kl_k3",
    },
    "Answer length, tokens": {"training": "answer/tokens", "held-out": "eval/answer_tokens"},
    "Shares of the answers": {
        "EOS, training": "answer/eos_rate",
        "EOS, held-out": "eval/eos_rate",
        "distinct bigrams": "eval/distinct_2",
    },
    "Entropy, nats per token": {"policy": "policy/entropy_avg"},
    "Clipping and critic, shares": {
        "policy clipped": "policy/clipfrac_avg",
        "value clipped": "val/clipfrac_avg",
        "explained variance": "val/explained_variance",
    },
    "Gradient norm before clipping": {"policy and critic": "grad_norm"},
    "Seconds per update": {
        "rollout": "time/rollout_s",
        "scoring": "time/score_s",
        "update": "time/update_s",
        "other": "time/other_s",
    },
}
_COLUMNS = 2
_WIDTH_IN, _ROW_HEIGHT_IN, _DPI = 12, 3.4, 100  # 1200 pixels wide


def write(stage_directory: Path) -> Path:
    """Draw the PPO run in this stage's directory as ppo.png there, and give the file's path.

    Series that were not measured are named where they are missing; a run that has logged nothing gives empty panels.
    """
    records, history = logged(stage_directory), heldout(stage_directory)
    path = stage_directory / FILE
    _figure(merged(records, history)).savefig(path, dpi=_DPI)
    return path


def logged(stage_directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what they say of held-out prompts, which the held-out files say."""
    metrics_file = stage_directory / "metrics.jsonl"
    if not metrics_file.exists():
        return []
    with metrics_file.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [{key: value for key, value in record.items() if not key.startswith("eval/")} for record in records]


def heldout(stage_directory: Path) -> list[Measured]:
    """What PPO measured on held-out prompts, up to the newest update that it logged."""
    newest = max((record["step"] for record in logged(stage_directory)), default=0)
    return measured.read(stage_directory / measured.DIRECTORY, newest)


def merged(records: Records, history: Sequence[Measured]) -> Records:
    """What was logged, and after it the held-out measurements under their metrics' names."""
    return [*records, *({"step": one.update, **measured.summary(one)} for one in history)]


def panels(width_in: float, row_height_in: float, rows: int, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row; sizes in inches."""
    figure = Figure(figsize=(width_in, rows * row_height_in), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which keeps figures and looks for a screen
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _figure(records: Records) -> Figure:
    figure, places = panels(_WIDTH_IN, _ROW_HEIGHT_IN, -(-len(PANELS) // _COLUMNS), _COLUMNS)
    for (title, metrics), axes in zip(PANELS.items(), places, strict=True):
        curves(axes, title, metrics, records)
    return figure


def curves(axes: Axes, title: str, metrics: Mapping[str, str], records: Records, step: str = "update") -> None:
    """Draw metrics (by label) over the steps, with their intervals where `<metric>_low` and `_high` were logged."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(step, fontsize=9)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=9)
    missing = []
    for place, (label, metric) in enumerate(metrics.items()):
        steps, values = _series(records, metric)
        if not values:
            missing.append(label)
            continue
        of_heldout = metric.startswith("eval/")
        marker = MARKERS[place] if of_heldout or len(values) == 1 else None  # a line of one point would not show
        axes.plot(steps, values, color=COLOURS[place], label=label, marker=marker, markersize=4, linewidth=1.5)
        low_steps, lows = _series(records, f"{metric}_low")
        _, highs = _series(records, f"{metric}_high")
        if lows:
            axes.fill_between(low_steps, lows, highs, color=COLOURS[place], alpha=0.15, linewidth=0)
    if len(missing) < len(metrics):
        axes.legend(fontsize=8, framealpha=0.8)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if missing:
        axes.set_title(f"not measured: {', '.join(missing)}", loc="right", fontsize=8, color="0.4")


def _series(records: Records, metric: str) -> tuple[list[int], list[float]]:
    """Updates and values of one metric, in the order of the updates."""
    points = sorted((record["step"], float(record[metric])) for record in records if metric in record)
    return [step for step, _ in points], [value for _, value in points]
