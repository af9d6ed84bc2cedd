"""Fill the cards of a run's models with what its manifests recorded; a field without a value is an error.

cards/policy.md is the template of the policy's card; those of the SFT and the reward model replace blocks of it.
"""

from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpt2_rlhf.config import methods
from gpt2_rlhf.config.printable import LAYOUT, printable
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import card_samples, card_training, front_matter, lineage, results, summary, verdict
from gpt2_rlhf.evidence.comparison import judge_fault, usable_measures
from gpt2_rlhf.evidence.front_matter import CardSources
from gpt2_rlhf.evidence.tables import markdown, text
from gpt2_rlhf.store.stage import TRAINED

TEMPLATES = Path(__file__).parent / "cards"
_TEMPLATE = {"model": "policy.md", "sft_model": "sft.md", "reward_model": "reward.md"}
_SUFFIX = {"model": "rlhf", "sft_model": "sft", "reward_model": "reward-model"}  # of a model without a repository


def folders(method: str) -> dict[str, str]:
    """Return the folders of models in a run, and the stage whose model each holds. method: of the policy."""
    return {"model": method, "sft_model": "sft", "reward_model": "reward"}


def templates(folder: Path, is_html: bool) -> Environment:
    """Return the templates in a folder, which may call the functions that make what cards and report show.

    A field that is undefined or None is an error, and control characters are escaped. is_html: escape every text that
    is not Markup, and leave out the newline at the end.
    """

    def finalized(value: Any) -> Any:
        if value is None:
            raise ValueError("a field of the template has no value")
        return printable(value, kept=LAYOUT) if type(value) is str else value  # not of Markup, which is finished

    environment = Environment(  # not ModelCard.from_template, which leaves out undefined fields without an error
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        finalize=finalized,
        autoescape=is_html,
        keep_trailing_newline=not is_html,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(table=markdown, figure=text)
    modules = (results, lineage, card_training, card_samples, verdict)
    environment.globals.update({module.__name__.rpartition(".")[2]: module for module in modules})
    return environment


def render(settings: Settings, sources: CardSources, folder: str = "model") -> str:
    """Return the card of the model in this folder of outputs/latest, as Markdown.

    Raises:
        UndefinedError, ValueError: a field of the template has no value, or the Hub would read other front matter.
    """
    template = templates(TEMPLATES, is_html=False).get_template(_TEMPLATE[folder])  # texts of models are fenced
    found = {**summary.findings(sources.records, sources.seeds), "manifests": sources.records}
    method = methods.of(sources.records)
    function = results.reward_function(found)
    judge_note = "No second reward model (judge) was trained."
    if found["judge"]:
        judge_note = f"The judge is a second reward model that {methods.LABELS[method]} is not trained on."
    stage = folders(method)[folder]
    base = "bundled-gpt2" if settings.model.name == "embedded" else Path(settings.model.name).name
    repositories = {"model": settings.publish.repo_id, "reward_model": settings.publish.reward_repo_id}
    repo_id, revision = repositories.get(folder), settings.publish.revision or "main"
    title = repo_id or f"{base}-{_SUFFIX[folder]}"
    # the arguments of from_pretrained
    place = f'"{repo_id or f"outputs/latest/{folder}"}"'
    if repo_id is not None and revision != "main":
        place += f', revision="{revision}"'
    front = front_matter.of_model(stage, settings, title, sources)
    is_gpt2 = sources.model_type == "gpt2"
    card = template.render(
        **found,
        found=found,
        sources=sources,
        card_data=front.to_yaml(),
        title=title,
        stage=stage,
        method=method,
        label=methods.LABELS[method],
        policy=found[method],
        judge_fault=judge_fault(found),
        trained=TRAINED[: TRAINED.index(stage) + 1],
        is_demonstration=settings.model.name == "embedded",
        is_hh=front_matter.is_hh(settings.data),
        is_gpt2=is_gpt2,
        is_chat=settings.data.template is not None,
        classes=("GPT2LMHeadModel", "GPT2Tokenizer") if is_gpt2 else ("AutoModelForCausalLM", "AutoTokenizer"),
        base=front_matter.base_link(settings.model).replace("<", "&lt;"),
        project=project(),
        folder=folder,
        repositories=repositories,
        branch="" if revision == "main" else f"/tree/{revision}",
        measure=usable_measures(found)[0],
        has_utility=found["evaluation"]["models"][method]["utility"] is not None,
        data=front_matter.data_text(settings.data).replace("<", "&lt;"),
        maximised="that score" if function is None else f"another score (by `{function}`)",
        judge_note=judge_note,
        place=place,
        own_citation=_citation(settings, title, sources.records["evaluate"]["finished_at"]),
    )
    if ModelCard(card).data.to_dict() != front.to_dict():
        raise ValueError(f"{folder}: the card's front matter is not read back as it was written")
    return card


def project() -> str:
    """Return the name of this software, with a link where its metadata has an address."""
    addresses = metadata("gpt2-rlhf").get_all("Project-URL") or []
    return f"[gpt2-rlhf]({addresses[0].partition(', ')[2]})" if addresses else "gpt2-rlhf"


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
