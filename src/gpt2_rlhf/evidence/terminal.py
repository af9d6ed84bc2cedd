"""Turn a run's summary into the text printed at its end: what ran, how good the reward model is, what changed.

Plain text in ASCII of at most 100 columns, the same on a terminal, in a log file and under LANG=C. The rows of tables
are Markdown, so that they can be pasted into a page as they are.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.metrics import MEASURES
from gpt2_rlhf.evidence import results, verdict
from gpt2_rlhf.evidence.comparison import BEST_OF_N
from gpt2_rlhf.evidence.tables import WIDTH, Cell, Row, Table, plain, text

_NOTE = (
    "In brackets 95 % intervals: bootstrap over prompts; Wilson's for accuracies and shares of all or none. Utility is "
    "the data's own measure of quality, where it has one. The judge is a second reward model that PPO is not trained "
    "on. Reward is the reward model's score, and SD its standard deviation over held-out answers. A tie is half a win. "
    "Rose and fell are shares of prompts. Matched are the prompts whose two answers differ in length by at most 2 "
    "tokens or 10 %. Perplexity is of the data's chosen answers."
)


def render(summary: Mapping[str, Any]) -> str:
    """Return the summary as text: stages, SFT loss, reward model beside its baselines, the models compared.

    Figures read `mean [low, high]`, the ends of the 95 % interval. "-" is a figure that is unknown or compares a model
    with itself. What is unknown of every model has no row.
    """
    evaluation, ppo = summary["evaluation"], summary["ppo"]
    models, paired = results.models(summary), results.paired(summary)
    best_pair = f"ppo_minus_{BEST_OF_N}"
    parts = [
        f"Run {summary['run']}, seed {summary['seed']}",
        plain(_stages(summary["stages"])),
        plain(results.sft_loss(summary)),
        plain(results.accuracy(summary)),
        plain(results.reward_model_faults(summary)),
        *(_filled(verdict.forced_text(fault)) for fault in ppo["forced"]),
    ]
    if ppo["stopped"] is not None:
        parts.append(_filled(verdict.stopped_text(ppo)))
    if (chosen := verdict.chosen_text(ppo)) is not None:
        parts.append(_filled(chosen))
    # n of all prompts is in the note; a column more would not fit
    parts.append(plain(models.only("base", "sft", "ppo"), with_n=False))
    parts.append(plain(paired.only(*(key for key in paired.columns if key != best_pair)), with_n=False))
    if BEST_OF_N in models.columns:
        parts.append(plain(models.only(BEST_OF_N)))
        parts.append(plain(paired.only(best_pair)))
    parts.append(plain(results.subsets(summary).only("ppo_minus_sft/reward", "ppo_minus_sft/judge_reward")))
    if summary["seeds"] is not None:
        parts += [plain(results.over_seeds(summary)), _filled(verdict.failed_seeds(summary["seeds"]))]
    sampled = (
        f"All models on the same {evaluation['prompts']} held-out prompts: n = {evaluation['prompts']} for each figure "
        f"without another; answers sampled with seed {evaluation['seed']}, temperature "
        f"{evaluation['temperature']:g}, at most {evaluation['max_new_tokens']} tokens."
    )
    return "\n\n".join([*parts, _filled(f"{sampled} {_NOTE}")]) + "\n"


def found(stage: str, metrics: Mapping[str, Any]) -> str:
    """Return what a training stage found, in one line."""
    if stage == "sft":
        before, after = metrics["heldout_loss_before"], metrics["heldout_loss_after"]
        return f"held-out loss {text(before)} before, {text(after)} after, nats per token{_sample(after['n'], metrics)}"
    if stage in ("reward", "judge"):
        longer = text(metrics["baselines"]["longer_answer_wins"], "share")
        accuracy = text(metrics["accuracy"], "share")
        return f"held-out accuracy {accuracy}, the longer answer wins {longer}{_sample(metrics['pairs'], metrics)}"
    episodes = f"{metrics['episodes']} episodes in {metrics['updates']} updates"
    if metrics["heldout"] is None or metrics["heldout"]["kept"] is None:
        return episodes
    points = [metrics["heldout"][name] for name in ("start", "kept")]
    known = [one for one in MEASURES if points[0][one.key] is not None]
    changes = ((one.label.lower(), *(text(point[one.key]) for point in points)) for one in known)
    return ", ".join(
        [episodes, *(f"held-out {name} {before} before, {after} after" for name, before, after in changes)]
    )


def _sample(measured: int, metrics: Mapping[str, Any]) -> str:
    every = metrics["test_pairs"]
    return f" ({measured} of {every} test pairs, evaluate.pairs)" if measured < every else ""


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = {"wall_s": "Wall time", "work_s": "Of which work", "reused": "", "directory": "Directory"}
    rows = []
    for name, stage in stages.items():
        seconds = (text(stage[key], "seconds") for key in ("wall_s", "work_s"))
        texts = (*seconds, "re-used" if stage["reused"] else "ran", Path(stage["directory"]).name)
        rows.append(Row(name, [Cell(one) for one in texts]))
    return Table("stages", "Stage", columns, rows)


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, WIDTH, break_on_hyphens=False)
