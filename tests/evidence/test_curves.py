import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpt2_rlhf.config import metrics
from gpt2_rlhf.evidence import curves, measured
from gpt2_rlhf.evidence.measured import Measured

SHARE = {"mean": 1.0, "low": 0.94, "high": 1 - 1e-16, "n": 60}


def log(directory: Path, *records: dict[str, float]) -> None:
    lines = [json.dumps(record) + "\n" for record in records]
    (directory / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def measure(directory: Path, update: int, reward: float) -> None:
    """Two prompts of these rewards, without judge or utility."""
    zeros = np.zeros(2)
    rewards = np.array([reward - 1, reward + 1])
    one = Measured(rewards, None, None, zeros, zeros == 0, zeros, zeros, zeros, zeros, update=update)
    measured.write(directory / "heldout", one, ["p", "q"], [""] * 2)


def lines(figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    """Label -> points of one panel, without the line at zero."""
    drawn = {str(line.get_label()): line.get_xydata() for line in figure.axes[panel].get_lines()}
    return {label: [(float(x), float(y)) for x, y in xy] for label, xy in drawn.items() if not label.startswith("_")}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """What `write` draws, instead of the file alone."""
    kept: list = []
    make = curves.of_policy
    monkeypatch.setattr(curves, "of_policy", lambda *given: kept.append(make(*given)) or kept[-1])
    return kept


def test_training_and_heldout_rewards_share_a_panel(tmp_path, figures):
    log(
        tmp_path,
        {"step": 0, "eval/reward": 99.0},  # the held-out files have it too
        {"step": 1, "objective/unshaped_scores": 0.5},
        {"step": 2, "objective/unshaped_scores": 0.75},
    )
    measure(tmp_path, 0, 0.25)
    measure(tmp_path, 2, 1.0)
    curves.write(tmp_path)
    assert lines(figures[0], 0) == {"training": [(1, 0.5), (2, 0.75)], "held-out": [(0, 0.25), (2, 1.0)]}
    assert figures[0].axes[0].get_title("right") == "not measured: judge, utility"


def test_a_measurement_of_an_update_that_is_to_be_done_again_is_left_out(tmp_path, figures):
    log(tmp_path, {"step": 1, "grad_norm": 1.0}, {"step": 2, "grad_norm": 1.0})
    measure(tmp_path, 2, 1.0)
    measure(tmp_path, 4, 1.0)
    curves.write(tmp_path)
    assert lines(figures[0], 0)["held-out"] == [(2, 1.0)]


def test_a_single_point_has_a_marker(tmp_path, figures):
    log(tmp_path, {"step": 1, "grad_norm": 3.0})
    curves.write(tmp_path)
    panel = list(metrics.PANELS).index("Gradient norm before clipping")
    line = figures[0].axes[panel].get_lines()[0]
    assert lines(figures[0], panel) == {"policy and critic": [(1, 3.0)]}
    assert line.get_marker() in curves.MARKERS


def test_a_run_that_logged_nothing_says_so_in_every_panel(tmp_path, figures):
    curves.write(tmp_path)
    for axes, series in zip(figures[0].axes, metrics.PANELS.values(), strict=True):
        assert axes.get_title("right") == f"not measured: {', '.join(series)}"


def test_the_picture_is_1200_pixels_wide(tmp_path):
    log(tmp_path, {"step": 1, "grad_norm": 3.0}, {"step": 2, "grad_norm": float("nan")})
    path = curves.write(tmp_path)
    assert path == tmp_path / "ppo.png"
    with Image.open(path) as image:
        assert image.size[0] == 1200


def test_an_interval_whose_end_is_rounded_below_its_mean_can_be_drawn():
    assert curves.reach([SHARE]).tolist() == [[pytest.approx(0.06)], [pytest.approx(0, abs=1e-9)]]
    assert (curves.reach([{**SHARE, "high": 0.9999}]) >= 0).all()
