"""Fill the cards of a run's models with what its manifests recorded; a field without a value is an error.

cards/policy.md is the template of the policy's card; those of the SFT and the reward model replace blocks of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import card_samples, card_training, front_matter, lineage, results, summary, terminal
from gpt2_rlhf.evidence.tables import markdown

FOLDERS = {"model": "ppo", "sft_model": "sft", "reward_model": "reward"}  # in a run: the stage whose model it holds
TEMPLATES = Path(__file__).parent / "cards"
_TEMPLATE = {"model": "policy.md", "sft_model": "sft.md", "reward_model": "reward.md"}
_TRAINED = ("sft", "reward", "judge", "ppo")


@dataclass(frozen=True)
class CardSources:
    """What the cards of a run are filled from."""

    command: str
    records: Mapping[str, Mapping[str, Any]]  # each stage's manifest; of several PPO seeds, those of the first
    seeds: Mapping[str, Any] | None  # the spread over PPO seeds (seeds.py), where there are several
    samples: Sequence[Mapping[str, Any]]  # the objects of samples.jsonl
    pictures: Sequence[PurePosixPath]  # in the folder that the card lies in


def render(settings: Settings, sources: CardSources, folder: str = "model") -> str:
    """Return the card of the model in this folder of outputs/latest, as Markdown.

    Raises:
        UndefinedError, ValueError: a field of the template has no value, or the Hub would read other front matter.
    """
    # not ModelCard.from_template, which leaves out undefined fields without an error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=_require_value,
        autoescape=False,  # Markdown; the texts of models are in fenced blocks
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = _title(settings, folder)
    front = _front_matter(settings, sources, folder, title)
    text = environment.get_template(_TEMPLATE[folder]).render(
        card_data=front.to_yaml(), title=title, **_values(settings, sources, folder, title)
    )
    if ModelCard(text).data.to_dict() != front.to_dict():
        raise ValueError(f"{folder}: the card's front matter is not read back as it was written")
    return text


def _require_value(value: Any) -> Any:
    if value is None:
        raise ValueError("a field of the card has no value")
    return value


def _title(settings: Settings, folder: str) -> str:
    base = "bundled-gpt2" if settings.model.name == "embedded" else Path(settings.model.name).name
    names = {"model": f"{base}-rlhf", "sft_model": f"{base}-sft", "reward_model": f"{base}-reward-model"}
    return _repo_id(settings, folder) or names[folder]


def _repo_id(settings: Settings, folder: str) -> str | None:
    return {"model": settings.publish.repo_id, "reward_model": settings.publish.reward_repo_id}.get(folder)


def _front_matter(settings: Settings, sources: CardSources, folder: str, title: str) -> ModelCardData:
    metrics = {name: record["metrics"] for name, record in sources.records.items()}
    if folder == "sft_model":
        return front_matter.sft(settings, title, metrics["sft"], metrics["evaluate"])
    if folder == "reward_model":
        return front_matter.reward(settings, title, metrics["reward"])
    return front_matter.policy(settings, title, metrics["evaluate"])


def _values(settings: Settings, sources: CardSources, folder: str, title: str) -> dict[str, Any]:
    """The fields of the templates."""
    records, seeds = sources.records, sources.seeds
    found = {**summary.findings(records, seeds), "manifests": records}
    reward, models = found["reward_model"], results.models(found)
    last = FOLDERS[folder]
    trained = _TRAINED[: _TRAINED.index(last) + 1]
    return {
        "is_demonstration": settings.model.name == "embedded",
        "is_hh": front_matter.is_hub_data(settings.data) and settings.data.name == "Anthropic/hh-rlhf",
        "base": front_matter.base_text(settings.model),
        "data": front_matter.data_text(settings.data),
        "maximised": _maximised(records["ppo"]),
        "libraries": records["ppo"]["libraries"],
        "model_path": _repo_id(settings, folder) or f"outputs/latest/{folder}",
        "number": card_training.number,
        "evaluation": found["evaluation"],
        "forced": [terminal.forced_text(fault) for fault in found["ppo"]["forced"]],
        "stages_table": markdown(card_training.stages(records, trained)),
        "rows_table": markdown(lineage.rows_read(found)),
        "shares_text": card_training.shares(records["data"]),
        "guard": card_training.guard(records["ppo"]),
        "models_table": markdown(models.only("base", "sft") if last == "sft" else models),
        "differences_table": markdown(results.paired(found)),
        "subsets_table": markdown(results.subsets(found)),
        "sft_table": markdown(results.sft_loss(found)),
        "reward_models_table": markdown(results.accuracy(found)),
        "bias_table": markdown(results.reward_model_faults(found)),
        "calibration_table": markdown(results.calibration(found)),
        "score_mean": f"{reward['score_mean']:.2f}",
        "score_std": f"{reward['score_std']:.2f}",
        "scored_answers": 2 * reward["pairs"],
        "judge_note": _judge_note(records),
        "seeds_note": _seeds_note(sources),
        "seeds_table": None if seeds is None else markdown(results.over_seeds(found)),
        "seeds_text": None if seeds is None else terminal.failed_seeds(seeds),
        "samples_rule": card_samples.RULE,
        "samples": card_samples.markdown(sources.samples),
        "command": sources.command,
        "made_table": markdown(card_training.made(records, last)),
        "pictures": sources.pictures,
        "own_citation": _citation(settings, title, records["evaluate"]["finished_at"]),
    }


def _maximised(ppo: Mapping[str, Any]) -> str:
    function = ppo["inputs"]["ppo"]["reward"]["function"]
    return "that score" if function is None else f"another score (by `{function}`)"


def _judge_note(records: Mapping[str, Any]) -> str:
    if "judge" not in records:
        return "No second reward model (judge) was trained."
    return "The judge is a second reward model that PPO is not trained on."


def _seeds_note(sources: CardSources) -> str:
    if sources.seeds is None:
        return f", with one training seed ({sources.records['ppo']['seed']})"
    return f", with PPO's seeds {', '.join(str(one['seed']) for one in sources.seeds['by_seed'])}"


def _citation(settings: Settings, title: str, finished_at: str) -> str | None:
    """The BibTeX entry of the model, where the settings name an author."""
    if settings.card.author is None:
        return None
    fields = {
        "title": title.replace("_", "\\_"),
        "author": settings.card.author,
        "year": str(settings.card.year or finished_at[:4]),
        **({"url": f"https://huggingface.co/{title}"} if "/" in title else {}),
    }
    key = "".join(one for one in title if one.isalnum() or one == "-")
    lines = ",\n".join(f"  {name:6} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{{key},\n{lines}\n}}"
