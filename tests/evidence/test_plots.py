import numpy as np
from matplotlib.patches import Rectangle

from gpt2_rlhf.config import metrics
from gpt2_rlhf.evidence import plots
from gpt2_rlhf.evidence.measured import Measured
from helpers import report_run


def measured(update: int, reward: float, utility: float | None, kl: float) -> Measured:
    two = np.ones(2)
    utilities = None if utility is None else utility * two
    return Measured(reward * two, None, utilities, two, two == 1, two, two, kl * two, two, update=update)


def points(axes, label: str) -> list[tuple[float, float]]:
    """What is drawn under a label of the legend."""
    handles, labels = axes.get_legend_handles_labels()
    line = handles[labels.index(label)]
    return [(float(x), float(y)) for x, y in getattr(line, "lines", [line])[0].get_xydata()]


def test_the_picture_of_the_training_shows_what_changed_since_sft_the_kl_and_the_update_handed_on():
    history = [measured(0, 0.5, 2.0, 0.0), measured(4, 1.5, 1.0, 3.0), measured(8, 2.0, -1.0, 4.0)]
    picture = plots._training(history, kept_update=4, reward_label=metrics.REWARD.label)
    changes, kl = picture.figure.axes
    drawn = [np.asarray(line.get_xydata()).tolist() for axes in (changes, kl) for line in axes.get_lines()]
    assert drawn[:2] == [[[0, 0], [4, 1], [8, 1.5]], [[0, 0], [4, -1], [8, -3]]]  # reward, and utility: no judge
    assert [[0, 0], [4, 3], [8, 4]] in drawn
    texts = {one.get_text() for axes in (changes, kl) for one in axes.texts}
    assert texts == {"Reward +1.50", "Utility -3.00", "KL 4.00", "handed on: update 4"}
    assert "reward changed by 1.00 [1.00, 1.00]; utility changed by -1.00" in picture.alt
    assert "the KL to SFT reached 3.00 nats. The policy of update 4 was handed on." in picture.alt


def test_ends_that_are_close_have_labels_apart():
    history = [measured(0, 0.0, 0.0, 0.0), measured(4, 1.0, 1.01, 3.0)]
    picture = plots._training(history, kept_update=4, reward_label=metrics.REWARD.label)
    picture.figure.draw_without_rendering()
    reward, utility = (one for one in picture.figure.axes[0].texts if one.get_text()[:2] in ("Re", "Ut"))
    assert not reward.get_window_extent().overlaps(utility.get_window_extent())


def test_every_answer_is_in_the_histograms_and_lengths_in_bins_of_whole_tokens():
    samples = [
        {"answers": {name: {"tokens": place + shift} for shift, name in enumerate(("base", "sft", "ppo"))}}
        for place in range(90)
    ]
    (axes,) = plots._distributions("ppo", samples, "tokens", metrics.TOKENS).figure.axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert sum(bar.get_height() for bar in bars) == 90
    assert {bar.get_width() for bar in bars} == {3}  # 92 lengths, 0 to 91, over about 30 bins


def test_answers_that_are_all_alike_have_a_histogram():
    same = [{"answers": {name: {"tokens": 5, "reward": 0.5} for name in ("base", "sft", "ppo")}}] * 3
    for key in ("tokens", "reward"):
        (axes,) = plots._distributions("ppo", same, key, metrics.REWARD).figure.axes
        assert max(patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)) == 3


def test_the_name_of_a_subset_is_no_formula(tmp_path):
    records, _ = report_run.write(tmp_path)
    picture = plots._accuracy({"reward": records["reward"]["metrics"]})
    assert picture.save(tmp_path)[:4] == b"\x89PNG"
    labels = [tick.get_text() for tick in picture.figure.axes[0].get_yticklabels()]
    assert labels[1] == "Reward model: cost \\$a\\$b\nn = 30"
    assert points(picture.figure.axes[0], "accuracy")[0][0] == records["reward"]["metrics"]["accuracy"]["mean"]
