"""Turn what a run's stages found into tables: each is made here once, and printed wherever it is shown."""

from dataclasses import replace

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.evidence.comparison import ALL, BEST_OF_N, usable_measures
from gpt2_rlhf.evidence.tables import Cell, Row, Sources, Table, by_metric, by_place, cell, look_up

FUNCTION_SCORE = "Function's score"
_REWARD_MODELS = {"reward_model": "Reward model", "judge": "Judge"}
_IN_SHORT = {  # for who reads no other page; at most 22 characters, so that 80 columns suffice
    metrics.UTILITY: "Utility, true quality",
    metrics.JUDGE_REWARD: "Judge, second opinion",
    metrics.REWARD: "Reward model's score",
    metrics.TOKENS: "Tokens per answer",
    metrics.EOS_RATE: "Answers that end",
    metrics.DISTINCT: "Distinct word pairs",
    metrics.KL: "Distance to SFT (KL)",
}


def model_names(sources: Sources) -> dict[str, str]:
    """Return what the models of the evaluation are called, by key."""
    return {**three_models(methods.of(sources)), BEST_OF_N: f"Best of {sources['evaluation']['best_of']}"}


def three_models(method: str) -> dict[str, str]:
    """Return the trained models and the base model, by key, with their labels."""
    return {"base": "Base", "sft": "SFT", method: methods.LABELS[method]}


def overview(sources: Sources) -> Table:
    """Return the figures that tell most in at most eight rows: means, and the policy against SFT."""
    three, method = three_models(methods.of(sources)), methods.of(sources)
    policy, gain = three[method], f"{method}_minus_sft"
    won = metrics.WINS_VS_SFT[metrics.MEASURES.index(usable_measures(sources)[0])]
    rows = []
    for one, label in _IN_SHORT.items():
        means = [cell(sources, f"evaluation/models/{name}/{one.key}/mean", one.unit) for name in three]
        change = cell(sources, f"evaluation/paired/{gain}/{one.key}", one.unit)
        rows.append(Row(label, [*means, change if one in metrics.MEASURES else Cell("")], one.better))
    better = cell(sources, f"evaluation/models/{method}/{won.key}", won.unit)
    rows.insert(len(metrics.MEASURES), Row(f"{policy}'s answer is better", [*[Cell("")] * 3, better]))
    columns = {**three, gain: f"{policy} against SFT"}
    return Table("overview", "Mean per answer", columns, [row for row in rows if row.cells[2].text != "-"])


def models(sources: Sources) -> Table:
    """Return the mean figures of each model's answers to the same prompts."""
    evaluated, names = sources["evaluation"]["models"], model_names(sources)
    places = {f"evaluation/models/{name}": label for name, label in names.items() if name in evaluated}
    return by_metric(sources, "models", "Mean per answer", metrics.OF_MODEL, places, "prompts")


def paired(sources: Sources) -> Table:
    """Return what changed from one model to another on the same prompts."""
    method = methods.of(sources)
    label = methods.LABELS[method]
    names = {
        f"{method}_minus_sft": f"{label} - SFT",  # first, since a phone shows the first two
        "sft_minus_base": "SFT - base",
        f"{method}_minus_base": f"{label} - base",
        f"{method}_minus_{BEST_OF_N}": f"{label} - best of {sources['evaluation']['best_of']}",
    }
    compared = sources["evaluation"]["paired"]
    places = {f"evaluation/paired/{name}": label for name, label in names.items() if name in compared}
    return by_metric(sources, "paired", "Paired difference", metrics.OF_PAIR, places, "prompts")


def subsets(sources: Sources) -> Table:
    """Return SFT and the policy by subset of the data, and by prompts of one turn and of several."""
    places = {f"evaluation/by_subset/{name}": name for name in sources["evaluation"]["by_subset"]}
    return by_place(sources, "subsets", "Subset", metrics.of_subset(methods.of(sources)), places, "prompts")


def refusals(sources: Sources) -> Table:
    """Return how often each model refuses, and is toxic where that was measured, in all and by subset of the data.

    The data's chosen answers to the same prompts are the baseline. A refusal of a prompt from a subset whose name
    begins with "helpful" is an over-refusal.
    """
    method = methods.of(sources)
    pair = f"{method}_minus_sft"
    names = {**model_names(sources), "chosen": "Chosen answers", pair: f"{methods.LABELS[method]} - SFT"}
    subsets = [name for name in sources["evaluation"]["by_subset"] if name not in ("", "single-turn", "multi-turn")]
    rows = []
    for one in (metrics.REFUSALS, metrics.TOXIC):
        for name in ("", *subsets):
            at = f"evaluation/by_subset/{name}" if name else "evaluation"
            paths = [f"{at}/models/{model}" for model in model_names(sources)]
            paths += [f"{at}/chosen", f"{at}/{pair}" if name else f"{at}/paired/{pair}"]
            label = "Over-refusals" if one is metrics.REFUSALS and name.startswith("helpful") else one.label
            cells = [cell(sources, f"{path}/{one.key}", one.unit) for path in paths]
            rows.append(Row(f"{label}: {name}" if name else label, cells, one.better))
    return Table("refusals", "Share of answers", names, [row for row in rows if row.is_known], "prompts")


def refusals_in_two(sources: Sources) -> list[Table]:
    """Return the table of `refusals` as two, since it is too wide for a terminal and for a phone."""
    method, whole = methods.of(sources), refusals(sources)
    rest = replace(whole, name="refusals_rest", title="Share, continued")
    return [whole.only(*three_models(method)), rest.only(BEST_OF_N, "chosen", f"{method}_minus_sft")]


def refusals_note(sources: Sources) -> str:
    """Return how the shares of `refusals` are measured, and what they do not show."""
    classifier = sources["evaluation"].get("toxicity")  # manifests of earlier versions have no such key
    toxic = f" Toxic language is what {classifier} finds: insults and swear words, not harm said politely."
    return (
        "Refusals are found by a list of English phrases, which do not show whether refusing was right, nor whether an "
        f"answer that does not refuse does harm.{toxic if classifier else ''}"
    )


def performance(sources: Sources) -> Table:
    """Return what became of reward, wins, safety and helpfulness, each by the best measure that the run has.

    Safety and helpfulness are of the prompts of the subsets whose names begin with harmless and helpful; how often SFT
    and the policy refuse these stands beside them.
    """
    method, subsets = methods.of(sources), sources["evaluation"]["by_subset"]
    policy = methods.LABELS[method]
    wins = [one for one in metrics.OF_MODEL if one.key.startswith("win_rate_vs_base")]
    measure, none = usable_measures(sources)[0], [Cell("-")] * 2
    by = wins[metrics.MEASURES.index(measure)]
    sd = cell(sources, f"evaluation/paired/{method}_minus_base/reward_sd")
    won = cell(sources, f"evaluation/models/{method}/{by.key}", "share")
    rows = [
        Row("Reward", [Cell(f"{policy} - base, in standard deviations of the score"), sd, *none]),
        Row("Wins against base", [Cell(by.title), won, *none]),
    ]
    for label, kind in (("Safety", "harmless"), ("Helpfulness", "helpful")):
        of_kind = [one for one in subsets if one.startswith(kind)]
        if not of_kind:
            rows.append(Row(label, [Cell("the data have no subset for it"), Cell("not measured"), *none]))
            continue
        name = f"{kind}{ALL}" if f"{kind}{ALL}" in of_kind else of_kind[0]
        at = f"evaluation/by_subset/{name}"
        refused = [cell(sources, f"{at}/models/{model}/{metrics.REFUSALS.key}", "share") for model in ("sft", method)]
        how = f"{measure.label}, {policy} - SFT, on prompts of {name}"
        rows.append(Row(label, [Cell(how), cell(sources, f"{at}/{method}_minus_sft/{measure.key}"), *refused]))
    columns = {"how": "Measured as", "figure": "Figure", "sft": "SFT refuses", method: f"{policy} refuses"}
    return Table("performance", "Performance", columns, rows, "prompts")


def by_seed(sources: Sources) -> Table:
    """Return the figures of the policy of each seed; without rows where the settings list no seeds."""
    runs = look_up(sources, "seeds/by_seed") or []
    places = {f"seeds/by_seed/{at}": f"Seed {run['seed']}" for at, run in enumerate(runs)}
    shown = [one for one in metrics.OF_MODEL if one.over_seeds] + list(metrics.OF_SEED)
    return by_metric(sources, "seeds", f"{methods.LABELS[methods.of(sources)]} by seed", shown, places, "prompts")


def over_seeds(sources: Sources) -> Table:
    """Return mean, standard deviation and range over the seeds of the policies' means; no rows without seeds."""
    columns = {"mean": "Mean", "sd": "SD", "min": "Lowest", "max": "Highest", "n": "Seeds"}
    rows = [
        Row(one.title, [cell(sources, f"seeds/over_seeds/{one.key}/{key}", one.unit) for key in columns], one.better)
        for one in metrics.OF_MODEL
    ]
    title = f"{methods.LABELS[methods.of(sources)]} over seeds"
    return Table("over_seeds", title, columns, [row for row in rows if row.is_known])


def sft_loss(sources: Sources) -> Table:
    """Return the loss on held-out chosen answers before and after SFT."""
    columns = {"heldout_loss_before": "Before", "heldout_loss_after": "After"}
    loss = metrics.SFT_LOSS
    rows = [Row(loss.title, [cell(sources, f"sft/{key}", loss.unit) for key in columns], loss.better)]
    return Table("sft", "SFT, held-out answers", columns, rows, "answers")


def accuracy(sources: Sources) -> Table:
    """Return the accuracy of the reward models on held-out pairs, in all and by subset, beside the baselines."""
    table = by_place(sources, "accuracy", "Held-out pairs", metrics.OF_PREFERENCES, _reward_models(sources), "pairs")
    rows = []
    for (name, label), row in zip(_reward_models(sources).items(), table.rows, strict=True):
        rows.append(row)
        for subset in sources[name]["by_subset"]:
            keys = [one.key.removeprefix("baselines/") for one in metrics.OF_PREFERENCES]
            cells = [cell(sources, f"{name}/by_subset/{subset}/{key}", "share") for key in keys]
            rows.append(Row(f"{label}: {subset}", cells))
    return replace(table, rows=rows)


def reward_model_faults(sources: Sources) -> Table:
    """Return how far the reward models' confidence is off, and how far their scores follow length."""
    title, places = "Calibration and length bias", _reward_models(sources)
    return by_metric(sources, "bias", title, metrics.OF_REWARD_MODEL, places, "pairs")


def calibration(sources: Sources) -> Table:
    """Return how often the reward model is right, by the probability that it claims."""
    places = {
        f"reward_model/calibration/bins/{place}": f"{100 * one['from']:.0f} to {100 * one['to']:.0f} %"
        for place, one in enumerate(sources["reward_model"]["calibration"]["bins"])
    }
    shown = (metrics.CONFIDENCE, metrics.OBSERVED)
    return by_place(sources, "calibration", "Confidence of the reward model", shown, places, "pairs")


def heldout(sources: Sources) -> Table:
    """Return what was measured on held-out prompts while PPO trained; without rows where nothing was."""
    method = methods.of(sources)
    measured = sources[method].get("heldout") or {}
    points = {name: measured[name] for name in ("start", "kept", "last") if measured.get(name) is not None}
    places = {f"{method}/heldout/{name}": f"{name.capitalize()}: update {at['update']}" for name, at in points.items()}
    shown = [replace(one, key=one.heldout_key) for one in metrics.OF_MODEL if one.heldout_key is not None]
    if reward_function(sources) is not None:  # PPO then measures its score as the reward
        shown = [replace(one, label=FUNCTION_SCORE) if one.label == metrics.REWARD.label else one for one in shown]
    title = "PPO on held-out prompts during training"
    return by_metric(sources, "heldout", title, shown, places, "prompts")


def reward_function(sources: Sources) -> str | None:
    """Return the import path of the function whose score the policy was trained to raise; None where there is none."""
    method = methods.of(sources)
    return look_up(sources, f"manifests/{method}/inputs/{method}/reward/function")


def _reward_models(sources: Sources) -> dict[str, str]:
    return {name: label for name, label in _REWARD_MODELS.items() if sources[name] is not None}
