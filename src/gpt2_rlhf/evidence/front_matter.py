"""Build the front matter of a model card, from which the Hub lists the model: licence, base model, data, metrics.

huggingface_hub's ModelCardData writes the YAML, since names may hold characters that YAML interprets. The name of each
metric has the 95 % interval and n, and its `args` have them unrounded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.config.printable import LAYOUT, printable
from gpt2_rlhf.config.settings import Data, Model, Settings
from gpt2_rlhf.evidence import tables
from gpt2_rlhf.models.model_files import local_dir
from gpt2_rlhf.models.templates import messages

_TAGS = [
    "trl",
    "transformers",
    "rlhf",
    "reinforcement-learning-from-human-feedback",
    "chatgpt-style-training",
    "supervised-fine-tuning",
    "human-preferences",
    "ai-alignment",
]
_OWN_TAG = {"sft": "sft", "reward": "reward-model"}  # a policy's is its method


@dataclass(frozen=True)
class CardSources:
    """What the cards of a run are filled from."""

    command: str
    records: Mapping[str, Mapping[str, Any]]  # each stage's manifest; of several PPO seeds, those of the first
    seeds: Mapping[str, Any] | None  # the spread over PPO seeds (summary.spread), where there are several
    samples: Sequence[Mapping[str, Any]]  # the objects of samples.jsonl
    pictures: Sequence[Mapping[str, str]]  # of the report: file (in the card's folder), title and alt
    model_type: str  # of the base model's config.json


def of_model(stage: str, settings: Settings, title: str, sources: CardSources) -> ModelCardData:
    """Return that of the model which a stage trained: "sft", "reward" or the method of the policy."""
    records = sources.records
    report, figures = records[stage]["metrics"], records["evaluate"]["metrics"]["models"]
    if stage == "reward":
        measured = [(metrics.ACCURACY, report["accuracy"], f"{metrics.ACCURACY.label} on held-out pairs")]
    else:
        known = [(one, figures[stage].get(one.key), one.title) for one in metrics.OF_MODEL if one.hub_type is not None]
        measured = [(one, estimate, title) for one, estimate, title in known if estimate is not None]
    if stage == "sft":
        loss, name = metrics.SFT_LOSS, f"{metrics.SFT_LOSS.label} on chosen answers, {metrics.SFT_LOSS.unit}"
        # the KL of SFT to itself is zero
        measured = [(loss, report["heldout_loss_after"], name), *(one for one in measured if one[0] is not metrics.KL)]
    task = "text-classification" if stage == "reward" else "text-generation"
    return ModelCardData(
        license=settings.card.license,
        library_name="transformers",
        pipeline_tag=task,
        base_model=settings.model.name if _is_on_hub(settings.model) else None,
        datasets=[settings.data.name] if _is_hub_data(settings.data) else None,
        language="en" if is_hh(settings.data) or settings.data.name == "embedded" else None,
        tags=[
            _OWN_TAG.get(stage, stage),
            *_TAGS,
            *(["gpt2"] if sources.model_type == "gpt2" else []),
            *(["anthropic-hh-rlhf"] if is_hh(settings.data) else []),
            # manifests of earlier versions have no such key
            *(["trackio"] if "trackio" in (records[stage].get("report_to") or "") else []),
        ],
        widget=None if stage == "reward" else _widget(stage, sources.samples, settings.data.template),
        model_name=title,
        eval_results=[_metric(settings.data, task, *one) for one in measured],
    )


def _widget(stage: str, samples: Sequence[Mapping[str, Any]], template: str | None) -> list[dict[str, Any]]:
    """Return the examples that the model's page on the Hub shows: those that every run answers, as this model did."""
    return [
        {
            "example_title": f"Example {number}",
            **({"text": line["prompt"]} if template is None else {"messages": messages(line["prompt"])}),
            "output": {"text": printable(line["answers"][stage]["answer"], kept=LAYOUT)},
        }
        for number, line in enumerate(samples, start=1)
        if line["group"] == "example"
    ]


def base_text(model: Model) -> str:
    """Return the base model in words, without the folders of a local one."""
    if model.name == "embedded":
        return "The bundled GPT-2"
    if model.random is not None:
        return f"{model.name} (random weights)"
    if not _is_on_hub(model):
        return Path(model.name).name
    return model.name if model.revision is None else f"{model.name} (revision {model.revision})"


def data_text(data: Data) -> str:
    """Return the data in words, without the folders of local files."""
    if data.path is not None:
        return f"local files ({Path(data.path).name})"
    if data.name == "embedded":
        return "generated dialogues"
    subsets = "" if data.subsets is None else f", {', '.join(data.subsets)}"
    return f"{data.name} at revision {data.revision}{subsets}"


def base_link(model: Model) -> str:
    """Return `base_text` as Markdown, with a link where the model is on the Hub."""
    at = "" if model.revision is None else f"/tree/{model.revision}"
    return f"[{base_text(model)}](https://huggingface.co/{model.name}{at})" if _is_on_hub(model) else base_text(model)


def is_hh(data: Data) -> bool:
    """Return whether the pairs are Anthropic's."""
    return _is_hub_data(data) and data.name == "Anthropic/hh-rlhf"


def _is_hub_data(data: Data) -> bool:
    return data.path is None and data.name != "embedded"


def _is_on_hub(model: Model) -> bool:
    return model.random is None and local_dir(model.name) is None


def _metric(data: Data, task: str, metric: Metric, estimate: Mapping[str, float], name: str) -> EvalResult:
    assert metric.hub_type is not None
    on_hub = _is_hub_data(data)
    return EvalResult(
        task_type=task,
        dataset_type=data.name if on_hub else "generated" if data.path is None else "local",
        dataset_name=data.name if on_hub else data_text(data),
        dataset_config=", ".join(data.subsets) if data.subsets is not None else None,
        dataset_revision=data.revision if on_hub else None,
        dataset_split="test",
        metric_type=metric.hub_type,
        metric_name=f"{name}: {tables.text(estimate, metric.unit)}, n = {estimate['n']}",
        metric_value=estimate["mean"],
        metric_args={"low": estimate["low"], "high": estimate["high"], "n": estimate["n"]},
    )
