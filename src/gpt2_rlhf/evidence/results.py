"""Turn what a run's stages found into tables: each is made here once, and printed wherever it is shown."""

from dataclasses import replace

from gpt2_rlhf.config import metrics
from gpt2_rlhf.evidence.comparison import BEST_OF_N
from gpt2_rlhf.evidence.tables import Row, Sources, Table, by_metric, by_place, cell, titles

_REWARD_MODELS = {"reward_model": "Reward model", "judge": "Judge"}


def model_names(sources: Sources) -> dict[str, str]:
    """Return what the models of the evaluation are called, by key."""
    return {"base": "Base", "sft": "SFT", "ppo": "PPO", BEST_OF_N: f"Best of {sources['evaluation']['best_of']}"}


def models(sources: Sources) -> Table:
    """Return the mean figures of each model's answers to the same prompts."""
    names = model_names(sources)
    columns = {name: label for name, label in names.items() if name in sources["evaluation"]["models"]}
    rows = by_metric(sources, metrics.OF_MODEL, [f"evaluation/models/{name}" for name in columns])
    return Table("models", "Mean per answer", columns, rows, "prompts")


def paired(sources: Sources) -> Table:
    """Return what changed from one model to another on the same prompts."""
    evaluation = sources["evaluation"]
    names = {
        "ppo_minus_sft": "PPO - SFT",  # first, since a phone shows the first two
        "sft_minus_base": "SFT - base",
        "ppo_minus_base": "PPO - base",
        f"ppo_minus_{BEST_OF_N}": f"PPO - best of {evaluation['best_of']}",
    }
    columns = {name: label for name, label in names.items() if name in evaluation["paired"]}
    rows = by_metric(sources, metrics.OF_PAIR, [f"evaluation/paired/{name}" for name in columns])
    return Table("paired", "Paired difference", columns, rows, "prompts")


def subsets(sources: Sources) -> Table:
    """Return SFT and PPO by subset of the data, and by prompts of one turn and of several."""
    places = {f"evaluation/by_subset/{name}": name for name in sources["evaluation"]["by_subset"]}
    rows = by_place(sources, metrics.OF_SUBSET, places)
    return Table("subsets", "Subset", titles(metrics.OF_SUBSET), rows, "prompts")


def by_seed(sources: Sources) -> Table:
    """Return the figures of the policy of each PPO seed."""
    runs = sources["seeds"]["by_seed"]
    places = [f"seeds/by_seed/{place}" for place in range(len(runs))]
    outcomes = {"kept_update": "Update handed on", "stopped": "Stopped by the guard", "collapsed": "Collapsed"}
    rows = [
        *by_metric(sources, [one for one in metrics.OF_MODEL if one.over_seeds], places),
        *(Row(label, [cell(sources, f"{place}/{key}") for place in places]) for key, label in outcomes.items()),
    ]
    columns = {place: f"Seed {run['seed']}" for place, run in zip(places, runs, strict=True)}
    return Table("seeds", "PPO by seed", columns, rows, "prompts")


def over_seeds(sources: Sources) -> Table:
    """Return mean, standard deviation and range over the seeds of the policies' means."""
    columns = {"mean": "Mean", "sd": "SD", "min": "Lowest", "max": "Highest", "n": "Seeds"}
    rows = [
        Row(one.title, [cell(sources, f"seeds/over_seeds/{one.key}/{key}", one.unit) for key in columns], one.better)
        for one in metrics.OF_MODEL
    ]
    return Table("over_seeds", "PPO over seeds", columns, [row for row in rows if row.is_known])


def sft_loss(sources: Sources) -> Table:
    """Return the loss on held-out chosen answers before and after SFT."""
    columns = {"heldout_loss_before": "Before", "heldout_loss_after": "After"}
    loss = metrics.SFT_LOSS
    rows = [Row(loss.title, [cell(sources, f"sft/{key}", loss.unit) for key in columns], loss.better)]
    return Table("sft", "SFT, held-out answers", columns, rows, "answers")


def accuracy(sources: Sources) -> Table:
    """Return the accuracy of the reward models on held-out pairs, in all and by subset, beside the baselines."""
    rows = []
    for name, label in _reward_models(sources).items():
        rows += by_place(sources, metrics.OF_PREFERENCES, {name: label})
        for subset in sources[name]["by_subset"]:
            keys = [one.key.removeprefix("baselines/") for one in metrics.OF_PREFERENCES]
            cells = [cell(sources, f"{name}/by_subset/{subset}/{key}", "share") for key in keys]
            rows.append(Row(f"{label}: {subset}", cells))
    return Table("accuracy", "Held-out pairs", titles(metrics.OF_PREFERENCES), rows, "pairs")


def reward_model_faults(sources: Sources) -> Table:
    """Return how far the reward models' confidence is off, and how far their scores follow length."""
    columns = _reward_models(sources)
    rows = by_metric(sources, metrics.OF_REWARD_MODEL, list(columns))
    return Table("bias", "Calibration and length bias", columns, rows, "pairs")


def calibration(sources: Sources) -> Table:
    """Return how often the reward model is right, by the probability that it claims."""
    bins = sources["reward_model"]["calibration"]["bins"]
    places = {
        f"reward_model/calibration/bins/{place}": f"{100 * one['from']:.0f} to {100 * one['to']:.0f} %"
        for place, one in enumerate(bins)
    }
    shown = (metrics.CONFIDENCE, metrics.OBSERVED)
    rows = by_place(sources, shown, places)
    return Table("calibration", "Confidence of the reward model", titles(shown), rows, "pairs")


def heldout(sources: Sources) -> Table | None:
    """Return what was measured on held-out prompts while PPO trained, None where nothing was."""
    measured = sources["ppo"]["heldout"]
    if measured is None:
        return None
    names = [name for name in ("start", "kept", "last") if measured[name] is not None]
    columns = {name: f"{name.capitalize()}: update {measured[name]['update']}" for name in names}
    shown = [replace(one, key=one.heldout_key) for one in metrics.OF_MODEL if one.heldout_key is not None]
    rows = by_metric(sources, shown, [f"ppo/heldout/{name}" for name in names])
    return Table("heldout", "PPO on held-out prompts during training", columns, rows, "prompts")


def _reward_models(sources: Sources) -> dict[str, str]:
    return {name: label for name, label in _REWARD_MODELS.items() if sources[name] is not None}
