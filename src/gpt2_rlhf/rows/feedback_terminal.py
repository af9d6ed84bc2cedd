"""Talk to the models in the terminal: their answers side by side, commands that start with a slash."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.models import chat_models
from gpt2_rlhf.rows import feedback
from gpt2_rlhf.rows.feedback import Conversation
from gpt2_rlhf.store import run as runs

HELP = """/new           start a new conversation
/seed N        draw with the seed N; /seed alone: new random numbers each time
/best N        add the best of N SFT answers by the reward model; 1: leave it out
/better NAME   keep that NAME's answer is better, as pairs, and go on from it
/run HASH      talk to another run; /run alone lists the runs
/quit          end"""


def serve(settings: Settings) -> None:
    """Talk until the input ends, or the user ends it. The first prompt is printed already."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # not if it is closed
        sys.stdin.reconfigure(errors="surrogateescape")
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    try:
        conversation = feedback.start(settings)
    except UserError:
        print(end="\n" if is_typed else "", flush=True)  # the error does not belong to the prompt
        raise
    talk(conversation, settings, _typed() if is_typed else _echoed(sys.stdin or (), console), console)


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
            conversation = replace(conversation, best_of=int(number))
        case ["/better", *words] if words:
            typed = " ".join(words)
            name = next((name for name in conversation.replies if name.startswith(typed)), typed)
            conversation, said = feedback.prefer(conversation, name, settings.preferences_file)
            say(said)
        case ["/run"]:
            say("\n".join(runs.finished(settings.output_dir)) or f"no finished run in {settings.output_dir}")
        case ["/run", name]:
            settings = chat_models.of_run(settings, name)
            conversation = replace(conversation.restarted(), models=chat_models.load(settings))
            say(f"run {runs.find(settings.output_dir, name).name}")
        case ["/help"]:
            say(HELP)
        case _:
            raise UserError(f"{line}: not a command, or not with these words; /help lists the commands")
    return conversation, settings


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


def _typed() -> Iterator[str]:
    """Yield what is typed, until Ctrl-D or Ctrl-C; from the second line on with a prompt and line editing."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        yield sys.stdin.readline() or "/quit"
        import readline  # noqa: F401 - for `input`; it would show again what was typed while the models were loaded

        while True:
            yield input("> ")


def _echoed(lines: Iterable[str], console: Console) -> Iterator[str]:
    for line in lines:
        console.print(f"> {line.rstrip()}")
        yield line.rstrip()
