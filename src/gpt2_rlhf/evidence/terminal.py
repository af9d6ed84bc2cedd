"""Turn a run's summary into text for a terminal: its story on one screen, and every table for who wants to know more.

Plain text in ASCII, the same on a terminal, in a log file and under LANG=C. The rows of tables are Markdown, so that
they can be pasted into a page as they are.
"""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import methods
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.metrics import MEASURES
from gpt2_rlhf.config.suggestions import did_you_mean
from gpt2_rlhf.evidence import results, verdict
from gpt2_rlhf.evidence.calibration import length_alone
from gpt2_rlhf.evidence.comparison import BEST_OF_N
from gpt2_rlhf.evidence.tables import WIDTH, Sources, Table, plain, text, text_row

_STORY_WIDTH = 80
_NOTE = (
    "In brackets 95 % intervals: bootstrap over prompts; Wilson's for accuracies and shares of all or none. Utility is "
    "the data's own measure of quality, where it has one. The judge is a second reward model that PPO is not trained "
    "on. Reward is the reward model's score, and SD its standard deviation over held-out answers. A tie is half a win. "
    "Rose and fell are shares of prompts. Matched are the prompts whose two answers differ in length by at most 2 "
    "tokens or 10 %. Perplexity is of the data's chosen answers."
)


def story(summary: Mapping[str, Any]) -> str:
    """Return what a run came to, in 80 columns: the verdict, what went wrong if anything did, one table."""
    paragraphs = [verdict.verdict(summary), *verdict.faults(summary[methods.of(summary)])]
    if summary["seeds"] is not None:
        paragraphs.append(verdict.failed_seeds(summary["seeds"]))
    means = f"Means over the same {summary['evaluation']['prompts']} held-out prompts; in brackets 95 % intervals."
    filled = "\n".join(map(_filled, paragraphs))
    return f"{filled}\n\n{plain(results.overview(summary))}\n{means}\n"


def tables(summary: Mapping[str, Any], name: str | None = None) -> str:
    """Return every table of a run as text, or those with this name; what is unknown of every model has no row.

    Raises:
        UserError: there is none with this name; the line lists the names.
    """
    every = _by_name(summary).items()
    known = {one: shown for one, group in every if (shown := [table for table in group if table.rows])}
    if name is not None and name not in known:
        raise UserError(f"table: there is no {name!r}; {did_you_mean(name, list(known))}")
    of_all = ("models", "paired", "best_of_n")  # their n is in the note; a column more would not fit
    chosen = known if name is None else {name: known[name]}
    parts = [plain(table, with_n=one not in of_all) for one, group in chosen.items() for table in group]
    evaluation = summary["evaluation"]
    sampled = (
        f"All models on the same {evaluation['prompts']} held-out prompts: n = {evaluation['prompts']} for each figure "
        f"without another; answers sampled with seed {evaluation['seed']}, temperature "
        f"{evaluation['temperature']:g}, at most {evaluation['max_new_tokens']} tokens."
    )
    note = textwrap.fill(f"{sampled} {_NOTE} {results.refusals_note(summary)}", WIDTH, break_on_hyphens=False)
    return "\n\n".join([f"Run {summary['run']}, seed {summary['seed']}", *parts, note]) + "\n"


def found(stage: str, metrics: Mapping[str, Any]) -> str:
    """Return what a stage found, short enough for a line of 80 columns; intervals are in the tables."""
    if stage == "data":
        train, test = (metrics[side] for side in ("train", "test"))
        left_out = sum(train["dropped"].values()) + sum(test["dropped"].values())
        more = f"; {left_out} left out (`make data`)" if left_out else ""
        return f"{train['kept']} training, {test['kept']} test pairs{more}"
    if stage == "evaluate":
        return f"{len(metrics['models'])} models answered {metrics['prompts']} held-out prompts"
    if stage == "sft":
        before, after = (metrics[f"heldout_loss_{when}"]["mean"] for when in ("before", "after"))
        pairs = metrics["heldout_loss_after"]["n"]
        return f"held-out loss {text(before)} -> {text(after)} nats per token{_sample(pairs, metrics)}"
    if stage in ("reward", "judge"):
        length = text(length_alone(metrics), "share")
        accuracy = text(metrics["accuracy"]["mean"], "share")
        return f"right on {accuracy} of held-out pairs, length alone on {length}{_sample(metrics['pairs'], metrics)}"
    if not metrics.get("heldout") or metrics["heldout"]["kept"] is None:
        return f"{metrics['updates']} updates"
    start, kept = metrics["heldout"]["start"], metrics["heldout"]["kept"]
    known = [one for one in MEASURES if start[one.key] is not None]
    shown = dict.fromkeys((known[0], known[-1]))  # the last is the reward, and may be the first
    changes = (f"{one.label.lower()} {text(start[one.key]['mean'])} -> {text(kept[one.key]['mean'])}" for one in shown)
    return f"held-out {', '.join(changes)}"


def _filled(paragraph: str) -> str:
    whole = re.sub(r"(?<=,) (?=[-.\d]+\])", "\xa0", paragraph)  # an interval is not broken over two lines
    return textwrap.fill(whole, _STORY_WIDTH, break_on_hyphens=False).replace("\xa0", " ")


def _sample(measured: int, metrics: Mapping[str, Any]) -> str:
    every = metrics["test_pairs"]
    return f" ({measured} of {every} pairs)" if measured < every else ""


def _by_name(sources: Sources) -> dict[str, list[Table]]:
    """Return every table by the name that chooses it, in the order in which they are printed."""
    method = methods.of(sources)
    models, paired, best_pair = results.models(sources), results.paired(sources), f"{method}_minus_{BEST_OF_N}"
    subsets = results.subsets(sources)
    return {
        "overview": [results.overview(sources)],
        "stages": [_stages(sources)],
        "sft": [results.sft_loss(sources)],
        "reward_model": [results.accuracy(sources), results.reward_model_faults(sources)],
        "calibration": [results.calibration(sources)],
        method: [results.heldout(sources)],
        "models": [models.only(*results.three_models(method))],
        "paired": [paired.only(*(key for key in paired.columns if key != best_pair))],
        "best_of_n": [models.only(BEST_OF_N), paired.only(best_pair)],
        # two tables, since three columns of large figures would be too wide
        "subsets": [
            subsets.only(f"{method}_minus_sft/reward", f"{method}_minus_sft/judge_reward"),
            subsets.only(f"{method}_minus_sft/utility"),
        ],
        "refusals": results.refusals_in_two(sources),
        "seeds": [results.over_seeds(sources), results.by_seed(sources)],
    }


def _stages(sources: Sources) -> Table:
    columns = {"wall_s": "Wall time", "work_s": "Of which work", "reused": "", "directory": "Directory"}
    rows = []
    for name, stage in sources["stages"].items():
        seconds = (text(stage[key], "seconds") for key in ("wall_s", "work_s"))
        state = "re-used" if stage["reused"] else "ran"
        rows.append(text_row(name, *seconds, state, Path(stage["directory"]).name))
    return Table("stages", "Stage", columns, rows)
