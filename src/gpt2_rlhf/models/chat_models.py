"""Load the models to talk to: those of a run, named folders, or repositories of the Hub."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.hub_errors import hub_errors
from gpt2_rlhf.config.settings import ChatModels, Evaluate, Model, Settings
from gpt2_rlhf.models import loading, model_checks, model_files, tokens
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.stage import TRAINED, fault

SCORERS = ("reward", "judge")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]

Loaded = tuple[dict[str, PreTrainedModel], PreTrainedTokenizerBase, Evaluate]


@dataclass(frozen=True)
class Models:
    """The models that answer and, of SCORERS, those that score, by name; all have one tokenizer."""

    policies: Mapping[str, PreTrainedModel]
    scorers: Mapping[str, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    temperature: float
    max_new_tokens: int

    @property
    def most_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for an answer and the EOS that a reward model reads after it."""
        every = (*self.policies.values(), *self.scorers.values())
        return min(model.config.max_position_embeddings for model in every) - self.max_new_tokens - 1


def load(settings: Settings) -> Models:
    """Load the models that the settings of the chat name, or those of its run.

    Raises:
        UserError: there is no such run, or a model is missing, damaged or of another kind.
    """
    named, chat = settings.chat.named_models, settings.chat
    loaded, tokenizer, evaluate = _named(named, settings.evaluate) if named else _of_run(settings)
    return Models(
        policies={name: model for name, model in loaded.items() if name not in SCORERS},
        scorers={name: model for name, model in loaded.items() if name in SCORERS},
        tokenizer=tokenizer,
        temperature=chat.temperature or evaluate.temperature,
        max_new_tokens=chat.max_new_tokens or evaluate.max_new_tokens,
    )


def of_run(settings: Settings, name: str) -> Settings:
    """Return the settings that talk to this run."""
    models = ChatModels(**dict.fromkeys(field.name for field in fields(ChatModels)))
    return replace(settings, chat=replace(settings.chat, run=name, models=models))


def _of_run(settings: Settings) -> Loaded:
    """Load the models of a run; every byte of their files is compared with its record."""
    found = runs.read(runs.find(settings.output_dir, settings.chat.run), settings)
    base, stages = found.settings.model, found.plans[0]
    for stage in (stages[name] for name in TRAINED if name in stages):
        if (wrong := fault(stage, read_all=True)) is not None:
            raise UserError(f"{stage.directory}: {wrong}; build it again: {found.command}")
    model_checks.check(base)
    template = found.settings.data.template
    if model_files.identity(base, template) != stages["sft"].inputs["model"]:
        raise UserError(f"model.name: {base.name} has changed since the run; build it again: {found.command}")
    tokenizer = tokens.load_base_tokenizer(base, template)
    loaded = {"base": loading.on_device(loading.load_base(base, found.settings.seed))}
    loaded |= {name: _load(name, stages[name].model_dir, tokenizer) for name in TRAINED if name in stages}
    return loaded, tokenizer, found.settings.evaluate


def _named(places: Mapping[str, str], evaluate: Evaluate) -> Loaded:
    """Load the models at these places, which must have one vocabulary, and one form of prompts if they were trained."""
    loaded: dict[str, PreTrainedModel] = {}
    tokenizers: dict[str, PreTrainedTokenizerBase] = {}
    for name, place in places.items():
        with _naming(name):
            folder = _folder(name, place)
            own = tokenizers[name] = tokens.load_published(str(folder))
            first, trained = next(iter(tokenizers)), [one for one in tokenizers if one != "base"]
            if own.get_vocab() != tokenizers[first].get_vocab():
                raise UserError(f"{place}: expected the vocabulary of {places[first]}")
            if name != "base":
                read, expected = ((one.chat_template, one.eos_token) for one in (own, tokenizers[trained[0]]))
                if read != expected:
                    raise UserError(f"{place}: expected the chat template and the EOS of {places[trained[0]]}")
            loaded[name] = _load(name, folder, own)
    if loaded.keys() <= {*SCORERS}:
        raise UserError("chat.models: no model that answers; set chat.models.base, sft, ppo, rloo or dpo")
    # a base model gets the prompts of the models that were trained from it, as in the evaluation
    tokenizer = tokenizers[min(tokenizers, key="base".__eq__)]
    return loaded, tokenizer, evaluate


def _load(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if name not in SCORERS:
        return loading.on_device(loading.load_policy(str(folder)))
    pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))
    return loading.on_device(loading.load_reward(str(folder), pad_token_id))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the setting of the chat in an error about a model, where it names those of a run's base model."""
    key = f"chat.models.{name}"
    try:
        yield
    except UserError as error:
        words = str(error).replace(", or use model=embedded", "")
        words = re.sub(r"model\.(name|revision|tokenizer)", key, words)
        raise UserError(words if words.startswith(key) else f"{key}: {words}") from error


def _folder(name: str, place: str) -> Path:
    """Return the folder of a model, downloaded if it is on the Hub, after all checks that need no torch."""
    folder = model_files.local_dir(place)
    if folder is None:
        from huggingface_hub import snapshot_download  # takes a fifth of a second to import

        repository, _, revision = place.partition("@")
        with hub_errors("model", repository, revision or None):
            folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=_FILES))
    config = model_checks.check(Model(str(folder), None, None, None))
    is_scorer = any("SequenceClassification" in kind for kind in config.get("architectures") or ())
    if is_scorer != (name in SCORERS):
        kinds = ("a model that answers", "a reward model")
        raise UserError(f"{place} is {kinds[is_scorer]}; expected {kinds[not is_scorer]}")
    return folder
