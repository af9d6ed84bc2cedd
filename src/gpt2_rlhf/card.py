"""Fill MODEL_CARD.md with what a run's manifests recorded; a name that nobody gives it is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpt2_rlhf import table
from gpt2_rlhf.model_files import local_dir
from gpt2_rlhf.settings import Settings

TEMPLATE = Path(__file__).resolve().parents[2] / "MODEL_CARD.md"
_ARGUMENTS_SHOWN = ("learning_rate", "num_train_epochs", "total_episodes", "kl_coef", "cliprange")


def render(settings: Settings, records: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """The card as Markdown. records: each stage's manifest; summary: what summary.json holds."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, and no text of a model is put in
        keep_trailing_newline=True,
    )
    embedded = settings.model.name == "embedded"
    local_model = embedded or settings.model.random is not None or settings.model.revision is None
    local_data = settings.data.path is not None or settings.data.name == "embedded"
    return environment.get_template(TEMPLATE.name).render(
        title=settings.publish.repo_id or f"{Path(settings.model.name).name}-rlhf",
        is_demonstration=embedded,
        base_model_id=None if local_model else settings.model.name,
        base_text=_base_text(settings),
        dataset_id=None if local_data else settings.data.name,
        data_text=_data_text(settings),
        libraries=records["ppo"]["libraries"],
        evaluation=summary["evaluation"],
        seed=summary["seed"],
        results=table.render(summary).rstrip(),
        stages=[_stage_row(name, settings, records[name]) for name in ("sft", "reward", "ppo")],
        device=summary["device"],
        cpus=summary["cpus"],
        finished_at=summary["finished_at"],
        command=summary["command"],
        model_path=settings.publish.repo_id or "outputs/latest/model",
    )


def _stage_row(name: str, settings: Settings, record: Mapping[str, Any]) -> dict[str, Any]:
    part = {"sft": settings.sft, "reward": settings.reward, "ppo": settings.ppo}[name]
    shown = {k: part.args[k] for k in _ARGUMENTS_SHOWN if k in part.args}
    if part.peft.r:
        shown["LoRA rank"] = part.peft.r
    metrics = record["metrics"]
    rows = f"{metrics['prompts']} prompts" if name == "ppo" else f"{metrics['train_rows']} pairs"
    return {"name": name, "rows": rows, "settings": ", ".join(f"{k} {v}" for k, v in shown.items())}


def _base_text(settings: Settings) -> str:
    model = settings.model
    if model.name == "embedded":
        return "The bundled GPT-2"
    name = model.name if local_dir(model.name) is None else Path(model.name).name
    if model.random is not None:
        return f"{name} (random weights)"
    return name if model.revision is None else f"{name} (revision {model.revision})"


def _data_text(settings: Settings) -> str:
    data = settings.data
    if data.path is not None:
        return f"local files ({Path(data.path).name})"
    return "generated dialogues" if data.name == "embedded" else f"{data.name} at revision {data.revision}"
