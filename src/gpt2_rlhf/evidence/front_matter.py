"""The front matter of a model card, which the Hub files the model by: licence, base model, data, measured metrics.

huggingface_hub's ModelCardData writes the YAML, since names may hold what YAML reads as something else. Each metric
names its 95 % interval and n and has them as `args`, unrounded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gpt2_rlhf.config.settings import Data, Model, Settings
from gpt2_rlhf.evidence import terminal
from gpt2_rlhf.models.model_files import local_dir

_TAGS = ["trl", "rlhf", "reinforcement-learning-from-human-feedback", "human-preferences"]
_TYPES = {  # key in the evaluation, and what the metric's type is called on the Hub
    "reward": "mean_reward",
    "judge_reward": "mean_judge_reward",
    "utility": "mean_utility",
    "win_rate_vs_sft": "win_rate",
    "win_rate_vs_base": "win_rate",
    "kl_to_sft_nats": "kl_divergence",
}


def policy(settings: Settings, title: str, evaluation: Mapping[str, Any]) -> ModelCardData:
    """Of the model that PPO left."""
    metrics = _means(settings.data, evaluation["models"]["ppo"], list(_TYPES))
    return _card_data(settings, title, "text-generation", ["ppo", *_TAGS], metrics)


def sft(settings: Settings, title: str, report: Mapping[str, Any], evaluation: Mapping[str, Any]) -> ModelCardData:
    """Of the SFT model. report: its stage's metrics."""
    loss = report["heldout_loss_after"]
    against_others = [key for key in _TYPES if key not in ("win_rate_vs_sft", "kl_to_sft_nats")]
    metrics = [
        _metric(settings.data, "text-generation", "loss", "Loss on chosen answers, nats per token", loss),
        *_means(settings.data, evaluation["models"]["sft"], against_others),
    ]
    return _card_data(settings, title, "text-generation", ["sft", *_TAGS], metrics)


def reward(settings: Settings, title: str, report: Mapping[str, Any]) -> ModelCardData:
    """Of the reward model. report: its stage's metrics."""
    name = "Accuracy on held-out pairs"
    metrics = [_metric(settings.data, "text-classification", "accuracy", name, report["accuracy"], is_share=True)]
    return _card_data(settings, title, "text-classification", ["reward-model", *_TAGS], metrics)


def base_text(model: Model) -> str:
    """The base model in words, without the folders of a local one."""
    if model.name == "embedded":
        return "The bundled GPT-2"
    if model.random is not None:
        return f"{model.name} (random weights)"
    if not _is_on_hub(model):
        return Path(model.name).name
    return model.name if model.revision is None else f"{model.name} (revision {model.revision})"


def data_text(data: Data) -> str:
    """The data in words, without the folders of local files."""
    if data.path is not None:
        return f"local files ({Path(data.path).name})"
    if data.name == "embedded":
        return "generated dialogues"
    subsets = "" if data.subsets is None else f", {', '.join(data.subsets)}"
    return f"{data.name} at revision {data.revision}{subsets}"


def is_hub_data(data: Data) -> bool:
    """Whether the pairs come from a dataset of the Hub."""
    return data.path is None and data.name != "embedded"


def _is_on_hub(model: Model) -> bool:
    return model.random is None and local_dir(model.name) is None


def _card_data(
    settings: Settings, title: str, pipeline_tag: str, tags: list[str], metrics: list[EvalResult]
) -> ModelCardData:
    return ModelCardData(
        license=settings.card.license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        base_model=settings.model.name if _is_on_hub(settings.model) else None,
        datasets=[settings.data.name] if is_hub_data(settings.data) else None,
        tags=tags,
        model_name=title,
        eval_results=metrics,
    )


def _means(data: Data, model: Mapping[str, Any], keys: Sequence[str]) -> list[EvalResult]:
    return [
        _metric(data, "text-generation", _TYPES[key], label, model[key], is_share)
        for key, label, is_share in terminal.FIGURES
        if key in keys and model[key] is not None
    ]


def _metric(
    data: Data, task: str, kind: str, name: str, estimate: Mapping[str, float], is_share: bool = False
) -> EvalResult:
    shown = terminal.share(estimate) if is_share else terminal.figure(estimate)
    on_hub = is_hub_data(data)
    return EvalResult(
        task_type=task,
        dataset_type=data.name if on_hub else "generated" if data.path is None else "local",
        dataset_name=data.name if on_hub else data_text(data),
        dataset_config=", ".join(data.subsets) if data.subsets is not None else None,
        dataset_revision=data.revision if on_hub else None,
        dataset_split="test",
        metric_type=kind,
        metric_name=f"{name}: {shown}, n = {estimate['n']}",
        metric_value=estimate["mean"],
        metric_args={"low": estimate["low"], "high": estimate["high"], "n": estimate["n"]},
    )
