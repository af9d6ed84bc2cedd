"""Talk to base, SFT and PPO side by side, in the terminal or on a page for the browser.

    python -m gpt2_rlhf.chat [chat.key=value ...] [--web]

The models are those of the newest run, of another run, or named folders and repositories of the Hub.
"""

import contextlib
import importlib.util
import io
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.config import preflight
from gpt2_rlhf.config.compose import Composed
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.hub_errors import hub_errors
from gpt2_rlhf.config.settings import Chat, ChatModels, Evaluate, Model, Settings
from gpt2_rlhf.models import loading, model_checks, model_files, tokens
from gpt2_rlhf.rows import feedback
from gpt2_rlhf.rows.feedback import SCORERS, Conversation, Models
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.stage import TRAINED, fault

HELP = """/new           start a new conversation
/seed N        draw with the seed N; /seed alone: new random numbers each time
/best N        add the best of N SFT answers by the reward model; 1: leave it out
/better NAME   keep that NAME's answer is better, as pairs, and go on from it
/run HASH      talk to another run; /run alone lists the runs
/quit          end"""
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def run(composed: Composed) -> None:
    """Load the models and talk, until the user ends it.

    Raises:
        UserError: a setting that the chat does not read or cannot use, no such run, or a model that cannot be loaded.
    """
    settings = composed.settings
    for key in (one.partition("=")[0] for one in composed.overrides):
        if key.split(".")[0] not in ("chat", "output_dir"):
            raise UserError(f"{key}: not read by the chat, which takes chat.* and output_dir; choose a run by chat.run")
    preflight.check_ranges(settings, lambda key: key.startswith("chat."))
    if not feedback.file(settings).name.endswith(".jsonl"):
        raise UserError(f"chat.preferences: {settings.chat.preferences}; expected a name that ends with .jsonl")
    if settings.chat.web and importlib.util.find_spec("gradio") is None:
        raise UserError("chat.web: Gradio is not installed; install it: pip install '.[demo]', or leave out --web")
    conversation = load(settings)
    if settings.chat.web:
        from gpt2_rlhf.rows import feedback_page  # Gradio takes seconds to import

        feedback_page.serve(conversation, settings, lambda name: load(of_run(settings, name)))
        return
    if isinstance(sys.stdin, io.TextIOWrapper):  # not if it is closed
        sys.stdin.reconfigure(errors="surrogateescape")
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    console.print(f"{_title(settings)}: {', '.join(conversation.columns)}; /help lists commands, /quit ends")
    lines = _typed() if sys.stdin and sys.stdin.isatty() else _echoed(sys.stdin or (), console)
    talk(conversation, settings, lines, console)


def load(settings: Settings) -> Conversation:
    """Load the models that the settings name, and start a conversation with them.

    Raises:
        UserError: there is no such run, or a model is missing, damaged or of another kind.
    """
    named = {name: place for name, place in asdict(settings.chat.models).items() if place is not None}
    models = _named(named, settings) if named else _of_run(settings)
    feedback.check(models, settings.chat.best_of)
    return Conversation(models, settings.chat.seed, settings.chat.best_of)


def talk(conversation: Conversation, settings: Settings, lines: Iterable[str], console: Console) -> None:
    """Answer each line: a question to the models, or a command of HELP. What is wrong with a line is printed."""
    for line in lines:
        try:
            if line.startswith("/"):
                found = _command(line, conversation, settings, console.print)
                if found is None:
                    return
                conversation, settings = found
            elif line.strip():
                conversation = _answer(conversation, line, console)
        except UserError as error:
            console.print(f"error: {error}")
        except KeyboardInterrupt:
            console.print("stopped")


def _command(
    line: str, conversation: Conversation, settings: Settings, say: Callable[[str], None]
) -> tuple[Conversation, Settings] | None:
    """Carry out a command; return the conversation and settings to go on with, or None to end."""
    match line.split():
        case ["/quit"]:
            return None
        case ["/new"]:
            conversation = conversation.restarted()
        case ["/seed", *number]:
            conversation = replace(conversation, seed=feedback.seed(" ".join(number)))
        case ["/best", number] if number.isdecimal() and int(number) > 0:
            feedback.check(conversation.models, int(number))
            conversation = replace(conversation, best_of=int(number))
        case ["/better", *words] if words:
            typed = " ".join(words)
            name = next((name for name in conversation.replies if name.startswith(typed)), typed)
            conversation, said = feedback.prefer(conversation, name, feedback.file(settings))
            say(said)
        case ["/run"]:
            say("\n".join(runs.finished(settings.output_dir)) or f"no finished run in {settings.output_dir}")
        case ["/run", name]:
            settings = of_run(settings, name)
            conversation = replace(conversation.restarted(), models=load(settings).models)
            say(_title(settings))
        case ["/help"]:
            say(HELP)
        case _:
            raise UserError(f"{line}: not a command, or not with these words; /help lists the commands")
    return conversation, settings


def of_run(settings: Settings, name: str) -> Settings:
    """Return the settings that talk to this run."""
    models = ChatModels(base=None, sft=None, ppo=None, reward=None, judge=None)
    return replace(settings, chat=replace(settings.chat, run=name, models=models))


def _of_run(settings: Settings) -> Models:
    """Load the models of a run; every byte of their files is compared with its record."""
    found = runs.read(runs.find(settings.output_dir, settings.chat.run), settings)
    base, stages = found.settings.model, found.plans[0]
    for stage in (stages[name] for name in TRAINED if name in stages):
        if (wrong := fault(stage, read_all=True)) is not None:
            raise UserError(f"{stage.directory}: {wrong}; build it again: {found.command}")
    model_checks.check(base)
    tokenizer = loading.load_base_tokenizer(base)
    loaded = {"base": loading.on_device(loading.load_base(base, found.settings.seed))}
    loaded |= {name: _load(name, stages[name].model_dir, tokenizer) for name in TRAINED if name in stages}
    return _models(loaded, tokenizer, settings.chat, found.settings.evaluate)


def _named(places: Mapping[str, str], settings: Settings) -> Models:
    """Load the models at these places, which must have one vocabulary."""
    loaded: dict[str, PreTrainedModel] = {}
    tokenizer = None
    for name, place in places.items():
        with _naming(name):
            folder = _folder(name, place)
            own = tokens.load_tokenizer(str(folder), None)
            tokenizer = tokenizer or own
            if own.get_vocab() != tokenizer.get_vocab():
                raise UserError(f"{place}: expected the vocabulary of {next(iter(places.values()))}")
            loaded[name] = _load(name, folder, own)
    if tokenizer is None or loaded.keys() <= {*SCORERS}:
        raise UserError("chat.models: no model that answers; set chat.models.base, sft or ppo")
    return _models(loaded, tokenizer, settings.chat, settings.evaluate)


def _models(
    loaded: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, chat: Chat, evaluate: Evaluate
) -> Models:
    return Models(
        policies={name: model for name, model in loaded.items() if name not in SCORERS},
        scorers={name: model for name, model in loaded.items() if name in SCORERS},
        tokenizer=tokenizer,
        temperature=chat.temperature or evaluate.temperature,
        max_new_tokens=chat.max_new_tokens or evaluate.max_new_tokens,
    )


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


def _answer(conversation: Conversation, question: str, console: Console) -> Conversation:
    """Show the replies side by side as they grow, or once they are complete where the output is no terminal."""
    answered = conversation
    if console.is_terminal:
        with Live(console=console, refresh_per_second=20) as live:
            for answered in feedback.ask(conversation, question):
                live.update(_side_by_side(answered))
    else:
        *_, answered = feedback.ask(conversation, question)
        for name, reply in answered.replies.items():
            console.print(f"{name} ({reply.figures}): {reply.text}")
    console.print(f"seed {answered.drawn_with}", style="dim")
    return answered.continued()


def _side_by_side(conversation: Conversation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True)
    for name in conversation.replies:
        table.add_column(name, ratio=1, overflow="fold")
    replies = conversation.replies.values()
    table.add_row(*(Text(reply.text) for reply in replies))
    table.add_row(*(Text(reply.figures, style="dim") for reply in replies))
    return table


def _title(settings: Settings) -> str:
    named = [place for place in asdict(settings.chat.models).values() if place is not None]
    return ", ".join(named) or f"run {runs.find(settings.output_dir, settings.chat.run).resolve().name}"


def _typed() -> Iterator[str]:
    """Yield what is typed at a prompt, with line editing, until Ctrl-D or Ctrl-C."""
    import readline  # noqa: F401 - `input` uses it

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")


def _echoed(lines: Iterable[str], console: Console) -> Iterator[str]:
    for line in lines:
        console.print(f"> {line.rstrip()}")
        yield line.rstrip()


if __name__ == "__main__":  # `python -m gpt2_rlhf.chat` is `python -m gpt2_rlhf chat`
    sys.argv[1:1] = ["chat"]
    runpy.run_module("gpt2_rlhf", run_name="__main__")
