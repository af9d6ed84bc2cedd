"""Turn a run's summary and manifests into the tables of its report: every cell knows where its figure comes from.

A cell's key is the path of its figure in the sources ("evaluation/models/ppo/reward"); the page carries it and
report.json has the figure under it, so that a number on the page can be traced, and a test can compare all of them.
No figure stands alone: an estimate has its interval, and its n is in its row or, where it differs, in the cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_rlhf.evidence.terminal import estimate_text

Sources = Mapping[str, Any]  # the summary, and each stage's manifest below "manifests"

_MODELS = {"base": "Base", "sft": "SFT", "ppo": "PPO", "best_of_n": "Best of n"}
_PAIRS = {
    "ppo_minus_sft": "PPO - SFT",  # first, as a phone shows the first two
    "sft_minus_base": "SFT - base",
    "ppo_minus_base": "PPO - base",
    "ppo_minus_best_of_n": "PPO - best of n",
}
_FIGURES = {  # of a model: label, unit
    "reward": ("Reward", "points"),
    "judge_reward": ("Judge's reward", "points"),
    "utility": ("Utility", "points"),
    "win_rate_vs_base": ("Wins against base, by reward", "share"),
    "win_rate_vs_sft": ("Wins against SFT, by reward", "share"),
    "answer_tokens": ("Length, tokens", "points"),
    "eos_rate": ("Ended with EOS", "share"),
    "distinct_2": ("Distinct bigrams", "share"),
    "kl_to_sft_nats": ("KL to SFT, nats", "points"),
    "kl_bound_nats": ("KL to SFT at most, nats (computed)", "points"),
    "chosen_perplexity": ("Perplexity of chosen answers", "points"),
}
_DIFFERENCES = {  # of a pair of models: label, unit
    "reward": ("Reward", "points"),
    "reward_sd": ("Reward, in standard deviations of the reward model", "points"),
    "judge_reward": ("Judge's reward", "points"),
    "utility": ("Utility", "points"),
    "got_better": ("Got better: reward rose", "share"),
    "got_worse": ("Got worse: reward fell", "share"),
    "unchanged": ("Same reward", "share"),
    "by_judge/win": ("Win by the judge", "share"),
    "by_judge/tie": ("Tie by the judge", "share"),
    "by_judge/loss": ("Loss by the judge", "share"),
    "length_matched/win": ("Win by reward, like length", "share"),
    "length_matched/tie": ("Tie by reward, like length", "share"),
    "length_matched/loss": ("Loss by reward, like length", "share"),
}
_HELDOUT = {  # of a measurement while PPO trained: label, unit
    "reward": ("Reward", "points"),
    "judge_reward": ("Judge's reward", "points"),
    "utility": ("Utility", "points"),
    "kl_nats": ("KL to SFT, nats", "points"),
    "answer_tokens": ("Length, tokens", "points"),
    "eos_rate": ("Ended with EOS", "share"),
    "distinct_2": ("Distinct bigrams", "share"),
}
_TRUST = {  # of a reward model: label, unit
    "calibration/expected_error": ("Confidence off by, on average", "share"),
    "length_bias/correlation": ("Correlation of score with length", "points"),
    "length_bias/accuracy_chosen_longer": ("Accuracy where the chosen answer is longer", "share"),
    "length_bias/accuracy_chosen_shorter": ("Accuracy where the chosen answer is shorter", "share"),
    "margin": ("Score of chosen less that of rejected", "points"),
}
_REWARD_MODELS = {"reward_model": "Reward model", "judge": "Judge"}


@dataclass(frozen=True)
class Cell:
    """One figure as text, the path of what it says, and the n of an estimate; nothing known has the text "-"."""

    text: str
    key: str
    n: int | None


@dataclass(frozen=True)
class Row:
    """A label and its cells, one a column."""

    label: str
    cells: Sequence[Cell]

    @property
    def n(self) -> int | None:
        """The n of the row's first estimate; None where it has none."""
        return next((cell.n for cell in self.cells if cell.n is not None), None)


@dataclass(frozen=True)
class Table:
    """Columns of figures; `n_of` says what n counts, None where the rows hold no estimates."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    n_of: str | None


def look_up(sources: Sources, key: str) -> Any:
    """What stands at a path; None where the path ends early in a null or has no such entry."""
    found: Any = sources
    for part in key.split("/"):
        if found is None:
            return None
        found = found[int(part)] if isinstance(found, list) else found.get(part)
    return found


def text(value: Any, unit: str) -> str:
    """The one way in which a figure of the report is written; an estimate is `mean [low, high]`, nothing is "-"."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return estimate_text(value, unit == "share")
    if not isinstance(value, float):
        return str(value)
    return {"share": f"{100 * value:.1f} %", "seconds": f"{value:.1f} s", "MiB": f"{value:.0f} MiB"}.get(
        unit, f"{value:.2f}"
    )


def cell(sources: Sources, key: str, unit: str = "points") -> Cell:
    """The cell of the figure at a path."""
    value = look_up(sources, key)
    return Cell(text(value, unit), key, value["n"] if isinstance(value, Mapping) else None)


def results(sources: Sources) -> list[Table]:
    """What the evaluation found: the models, their paired differences, subsets, and seeds where there are several."""
    models = {name: label for name, label in _MODELS.items() if name in sources["evaluation"]["models"]}
    pairs = {name: label for name, label in _PAIRS.items() if name in sources["evaluation"]["paired"]}
    tables = [
        Table(
            "models",
            "Mean per answer",
            list(models.values()),
            _rows(sources, _FIGURES, [f"evaluation/models/{name}" for name in models]),
            "prompts",
        ),
        Table(
            "paired",
            "Differences on the same prompts",
            list(pairs.values()),
            _rows(sources, _DIFFERENCES, [f"evaluation/paired/{name}" for name in pairs]),
            "prompts",
        ),
        _by_subset(sources),
    ]
    return tables if sources["seeds"] is None else [*tables, _by_seed(sources), _over_seeds(sources)]


def training(sources: Sources) -> list[Table]:
    """What each stage found: held-out loss, accuracy and calibration of the reward models, PPO on held-out prompts."""
    asked = {name: label for name, label in _REWARD_MODELS.items() if sources[name] is not None}
    loss = [cell(sources, f"sft/{name}") for name in ("heldout_loss_before", "heldout_loss_after")]
    tables = [
        Table("sft", "SFT on held-out answers", ["Before", "After"], [Row("Loss, nats per token", loss)], "answers"),
        _accuracy(sources, asked),
        Table("trust", "May it be trusted?", list(asked.values()), _rows(sources, _TRUST, list(asked)), "pairs"),
        _calibration(sources),
    ]
    heldout = sources["ppo"]["heldout"]
    if heldout is not None:
        known = [name for name in ("start", "kept", "last") if heldout[name] is not None]
        columns = [f"{name.capitalize()}: update {heldout[name]['update']}" for name in known]
        rows = _rows(sources, _HELDOUT, [f"ppo/heldout/{name}" for name in known])
        tables.append(Table("heldout", "PPO on held-out prompts while it trained", columns, rows, "prompts"))
    return tables


def shown(tables: Sequence[Table], rows: Sequence[Row], sources: Sources) -> dict[str, Any]:
    """The figures that these tables and rows show, by key."""
    every = [*rows, *(row for table in tables for row in table.rows)]
    return {cell.key: look_up(sources, cell.key) for row in every for cell in row.cells}


def _rows(sources: Sources, figures: Mapping[str, tuple[str, str]], places: Sequence[str]) -> list[Row]:
    """A row for each figure, a cell for each place; figures that nobody knows are left out."""
    rows = [
        Row(label, [cell(sources, f"{place}/{key}", unit) for place in places])
        for key, (label, unit) in figures.items()
    ]
    return [row for row in rows if any(one.text != "-" for one in row.cells)]


def _by_subset(sources: Sources) -> Table:
    columns = {
        "models/sft/reward": "Reward, SFT",
        "models/ppo/reward": "Reward, PPO",
        "ppo_minus_sft/reward": "Reward, PPO - SFT",
        "ppo_minus_sft/judge_reward": "Judge's reward, PPO - SFT",
        "ppo_minus_sft/utility": "Utility, PPO - SFT",
    }
    subsets = sources["evaluation"]["by_subset"]
    rows = [Row(name, [cell(sources, f"evaluation/by_subset/{name}/{key}") for key in columns]) for name in subsets]
    return Table("subsets", "By subset", list(columns.values()), rows, "prompts")


def _by_seed(sources: Sources) -> Table:
    runs = sources["seeds"]["by_seed"]
    figures = {key: figure for key, figure in _FIGURES.items() if key in sources["seeds"]["over_seeds"]}
    rows = _rows(sources, figures, [f"seeds/by_seed/{place}" for place in range(len(runs))])
    fates = {"kept_update": "Update handed on", "stopped": "Stopped by the guard", "collapsed": "Collapsed"}
    rows += [
        Row(label, [cell(sources, f"seeds/by_seed/{i}/{key}") for i in range(len(runs))])
        for key, label in fates.items()
    ]
    return Table("seeds", "PPO by seed", [f"Seed {one['seed']}" for one in runs], rows, "prompts")


def _over_seeds(sources: Sources) -> Table:
    columns = {"mean": "Mean", "sd": "Standard deviation", "min": "Lowest", "max": "Highest", "n": "Seeds"}
    known = {key: over for key, over in sources["seeds"]["over_seeds"].items() if over is not None}
    rows = [
        Row(_FIGURES[key][0], [cell(sources, f"seeds/over_seeds/{key}/{one}", _FIGURES[key][1]) for one in columns])
        for key in known
    ]
    return Table("over_seeds", "PPO over seeds", list(columns.values()), rows, None)


def _accuracy(sources: Sources, asked: Mapping[str, str]) -> Table:
    columns = {
        "accuracy": "Accuracy",
        "baselines/longer_answer_wins": "The longer answer wins",
        "baselines/chance": "Chance",
        "baselines/best_reachable": "Best that the labels' noise allows",
    }
    rows = [Row(label, [cell(sources, f"{name}/{key}", "share") for key in columns]) for name, label in asked.items()]
    for name, label in asked.items():
        for subset in sources[name]["by_subset"]:
            keys = [f"{name}/by_subset/{subset}/{key.removeprefix('baselines/')}" for key in columns]
            rows.append(Row(f"{label}: {subset}", [cell(sources, key, "share") for key in keys]))
    return Table("accuracy", "Right on held-out pairs", list(columns.values()), rows, "pairs")


def _calibration(sources: Sources) -> Table:
    columns = {"from": "Claimed from", "to": "to", "predicted": "Mean claim", "observed": "Right"}
    rows = [
        Row(
            f"Bin {place + 1}",
            [cell(sources, f"reward_model/calibration/bins/{place}/{key}", "share") for key in columns],
        )
        for place in range(len(sources["reward_model"]["calibration"]["bins"]))
    ]
    return Table("calibration", "Reward model: how sure, how often right", list(columns.values()), rows, "pairs")
