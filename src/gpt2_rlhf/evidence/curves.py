"""Turn what a PPO run logged into one picture: reward beside judge and utility, KL, lengths, and clipping.

Training figures come from metrics.jsonl, held-out ones from the files of measured.py, whose points are few and marked.
What was not measured is named in its panel: an absent line must not read as zero. The report uses the same functions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gpt2_rlhf.config import metrics
from gpt2_rlhf.evidence import measured
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.store.files import read_json_lines, replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito's, distinct also for the colour-blind
MARKERS = "osD^v"

Records = Sequence[Mapping[str, Any]]  # what was logged, a step each

_COLUMNS = 2
_TICKS = 6  # at most, along an axis: enough to read, and most of the time of a picture is spent on their numbers
_WIDTH_IN, _ROW_HEIGHT_IN, _DPI = 12, 3.4, 100  # 1200 pixels wide


def write(stage_directory: Path) -> Path:
    """Draw the PPO run in this stage's directory as ppo.png there, and return the file's path."""
    path, records, history = stage_directory / "ppo.png", logged(stage_directory), heldout(stage_directory)
    save(of_policy(records, history, metrics.PANELS, _WIDTH_IN, _ROW_HEIGHT_IN, _COLUMNS), path, _DPI)
    return path


def logged(stage_directory: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl without the held-out figures, which the held-out files have."""
    metrics_file = stage_directory / "metrics.jsonl"
    records = read_json_lines(metrics_file) if metrics_file.exists() else []
    return [{key: value for key, value in record.items() if not key.startswith("eval/")} for record in records]


def heldout(stage_directory: Path) -> list[Measured]:
    """Return what PPO measured on held-out prompts, up to the newest update that it logged, without diverged ones."""
    newest = max((record["step"] for record in logged(stage_directory)), default=0)
    history = measured.read(stage_directory / measured.DIRECTORY, newest)
    return [one for one in history if one.kl_nats is None or np.isfinite(one.kl_nats).all()]


def panels(
    width_in: float, row_height_in: float, rows: int, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, row by row; sizes in inches. heights: of the rows, in any unit."""
    figure = Figure(figsize=(width_in, rows * row_height_in), layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False, height_ratios=heights).flat)
    for axes in found:
        axes.locator_params(nbins=_TICKS)
        axes.grid(alpha=0.3)
    return figure, found


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure of `panels` as PNG, `dpi` pixels an inch."""
    figure.set_dpi(dpi)
    with replacing(path, "wb") as file:
        # not pyplot, which keeps figures in memory and needs a display, nor figure.savefig, which draws twice; level 3
        # saves 0.4 s a run against level 6, for 15 % more bytes
        FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 3})


def of_policy(
    records: Records,
    history: Sequence[Measured],
    shown: Mapping[str, Mapping[str, str]],
    width_in: float,
    row_height_in: float,
    columns: int = 1,
) -> Figure:
    """Return a figure of panels of what was logged and of the held-out history; shown: by title, series of `curves`."""
    records = [*records, *({"step": one.update, **measured.summary(one)} for one in history)]
    figure, places = panels(width_in, row_height_in, -(-len(shown) // columns), columns)
    for (title, series), axes in zip(shown.items(), places, strict=True):
        curves(axes, title, series, records)
    return figure


def curves(axes: Axes, title: str, series: Mapping[str, str], records: Records, step: str = "update") -> None:
    """Draw series (metrics by label) over the steps, with intervals where `<metric>_low` and `_high` were logged."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(step, fontsize=9)
    axes.tick_params(labelsize=9)
    missing = []
    for place, (label, metric) in enumerate(series.items()):
        steps, values = _series(records, metric)
        if not values:
            missing.append(label)
            continue
        of_heldout = metric.startswith("eval/")
        marker = MARKERS[place] if of_heldout or len(values) == 1 else None  # a line of one point would not show
        axes.plot(steps, values, color=COLOURS[place], label=label, marker=marker, markersize=4, linewidth=1.5)
        lows, highs = (_series(records, f"{metric}_{end}")[1] for end in ("low", "high"))
        if lows:
            axes.fill_between(steps, lows, highs, color=COLOURS[place], alpha=0.15, linewidth=0)
    if len(missing) < len(series):
        axes.legend(fontsize=8, framealpha=0.8)
    else:
        axes.set(xticks=[], yticks=[])
    if missing:
        axes.set_title(f"not measured: {', '.join(missing)}", loc="right", fontsize=8, color="0.4")


def reach(estimates: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Return how far the intervals go below and above their means, shape (2, estimates)."""
    reach = np.array([[one["mean"] - one["low"], one["high"] - one["mean"]] for one in estimates]).T
    return np.maximum(reach, 0)  # at a share of 1 Wilson's upper end may round to just below it


def _series(records: Records, metric: str) -> tuple[list[int], list[float]]:
    """Updates and values of one metric, in the order of the updates."""
    points = sorted((record["step"], float(record[metric])) for record in records if metric in record)
    return [step for step, _ in points], [value for _, value in points]
