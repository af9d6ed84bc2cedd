"""Fill the cards of a run's models with what its manifests recorded; a name that nobody gives a value is an error.

cards/policy.md is the template of the policy's card; those of the SFT and the reward model replace parts of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import card_samples, card_tables, card_training, front_matter, terminal
from gpt2_rlhf.evidence.comparison import BEST_OF_N

FOLDERS = {"model": "ppo", "sft_model": "sft", "reward_model": "reward"}  # in a run: the stage whose model it holds
TEMPLATES = Path(__file__).parent / "cards"
_TEMPLATE = {"model": "policy.md", "sft_model": "sft.md", "reward_model": "reward.md"}
_TRAINED = ("sft", "reward", "judge", "ppo")


@dataclass(frozen=True)
class Run:
    """What the cards of a run are filled from."""

    command: str
    records: Mapping[str, Mapping[str, Any]]  # each stage's manifest; of several seeds of PPO's, the first
    seeds: Mapping[str, Any] | None  # their spread (seeds.py), where there are several
    samples: Sequence[Mapping[str, Any]]  # the lines of samples.jsonl
    pictures: Sequence[PurePosixPath]  # in the folder that the card lies in


def render(settings: Settings, run: Run, folder: str = "model") -> str:
    """The card of the policy, or of another model by the name of its folder in outputs/latest, as Markdown.

    Raises:
        UndefinedError, ValueError: a template names what has no value, or the front matter is none.
    """
    # ModelCard.from_template has Jinja leave out what is undefined, so the template is filled here and parsed there
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=_given,
        autoescape=False,  # Markdown; what models wrote stands in fenced blocks
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = _title(settings, folder)
    front = _front_matter(settings, run, folder, title)
    text = environment.get_template(_TEMPLATE[folder]).render(
        card_data=front.to_yaml(), title=title, **_values(settings, run, folder, title)
    )
    if ModelCard(text).data.to_dict() != front.to_dict():
        raise ValueError(f"{folder}: the card's front matter is not read back as it was written")
    return text


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("a field of the card has no value")
    return value


def _title(settings: Settings, folder: str) -> str:
    base = "bundled-gpt2" if settings.model.name == "embedded" else Path(settings.model.name).name
    names = {"model": f"{base}-rlhf", "sft_model": f"{base}-sft", "reward_model": f"{base}-reward-model"}
    return _repo_id(settings, folder) or names[folder]


def _repo_id(settings: Settings, folder: str) -> str | None:
    return {"model": settings.publish.repo_id, "reward_model": settings.publish.reward_repo_id}.get(folder)


def _front_matter(settings: Settings, run: Run, folder: str, title: str) -> ModelCardData:
    metrics = {name: record["metrics"] for name, record in run.records.items()}
    if folder == "sft_model":
        return front_matter.sft(settings, title, metrics["sft"], metrics["evaluate"])
    if folder == "reward_model":
        return front_matter.reward(settings, title, metrics["reward"])
    return front_matter.policy(settings, title, metrics["evaluate"])


def _values(settings: Settings, run: Run, folder: str, title: str) -> dict[str, Any]:
    """What the templates may name."""
    records, metrics = run.records, {name: record["metrics"] for name, record in run.records.items()}
    evaluation, reward = metrics["evaluate"], metrics["reward"]
    last = FOLDERS[folder]
    shown = [name for name in ("base", "sft", "ppo", BEST_OF_N) if name in evaluation["models"]]
    return {
        "is_demonstration": settings.model.name == "embedded",
        "is_hh": front_matter.is_hub_data(settings.data) and settings.data.name == "Anthropic/hh-rlhf",
        "base": front_matter.base_text(settings.model),
        "data": front_matter.data_text(settings.data),
        "maximised": _maximised(records["ppo"]),
        "libraries": records["ppo"]["libraries"],
        "model_path": _repo_id(settings, folder) or f"outputs/latest/{folder}",
        "number": card_training.number,
        "evaluation": evaluation,
        "forced": metrics["ppo"]["forced"],
        "stages_table": card_training.stages(records, ("sft",) if folder == "sft_model" else _trained(last)),
        "rows_table": card_training.rows_read(metrics["data"]),
        "shares_text": card_training.shares(records["data"]),
        "guard": card_training.guard(records["ppo"]),
        "models_table": card_tables.models(evaluation, shown[:2] if folder == "sft_model" else shown),
        "differences_table": card_tables.differences(evaluation),
        "subsets_table": card_tables.subsets(evaluation),
        "sft_table": card_tables.losses(metrics["sft"]),
        "reward_models_table": card_tables.reward_models(reward, metrics.get("judge")),
        "calibration_table": card_tables.calibration(reward),
        "trust": terminal.trust(reward),
        "score_mean": f"{reward['score_mean']:.2f}",
        "score_std": f"{reward['score_std']:.2f}",
        "scored_answers": 2 * reward["pairs"],
        "judge_note": _judge_note(records),
        "seeds_note": _seeds_note(run),
        "seeds_table": None if run.seeds is None else card_tables.seeds(run.seeds),
        "seeds_text": None if run.seeds is None else terminal.failed_seeds(run.seeds),
        "samples_rule": card_samples.RULE,
        "samples": card_samples.markdown(run.samples),
        "command": run.command,
        "made_table": card_training.made(records, last),
        "pictures": run.pictures,
        "own_citation": _citation(settings, title, records["evaluate"]["finished_at"]),
    }


def _trained(last: str) -> tuple[str, ...]:
    return _TRAINED[: _TRAINED.index(last) + 1]


def _maximised(ppo: Mapping[str, Any]) -> str:
    function = ppo["inputs"]["ppo"]["reward"]["function"]
    return "that score" if function is None else f"another score (by `{function}`)"


def _judge_note(records: Mapping[str, Any]) -> str:
    if "judge" not in records:
        return "There is no judge, a second reward model that PPO is not trained on."
    return "The judge is a second reward model that PPO is not trained on."


def _seeds_note(run: Run) -> str:
    if run.seeds is None:
        return f", with one training seed ({run.records['ppo']['seed']})"
    return f", with PPO's seeds {', '.join(str(one['seed']) for one in run.seeds['by_seed'])}"


def _citation(settings: Settings, title: str, finished_at: str) -> str | None:
    """A BibTeX entry for the model, where the settings name an author."""
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
