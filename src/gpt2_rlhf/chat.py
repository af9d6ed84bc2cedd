"""Talk to base, SFT and PPO side by side, in the terminal or on a page for the browser.

    python -m gpt2_rlhf.chat [chat.key=value ...] [--web]

The models are those of the newest run, of another run, or named folders and repositories of the Hub.
"""

import importlib.util
import sys

from gpt2_rlhf.config import as_command, preflight
from gpt2_rlhf.config.compose import Composed
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.launch import garbage
from gpt2_rlhf.store import run as runs


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
    if settings.preferences_file.suffix != ".jsonl":
        raise UserError(f"chat.preferences: {settings.chat.preferences}; expected a name that ends with .jsonl")
    if settings.chat.web and importlib.util.find_spec("gradio") is None:
        raise UserError("chat.web: Gradio is not installed; install it: pip install '.[demo]', or leave out --web")
    title = ", ".join(settings.chat.named_models.values())
    if not title:
        found = runs.read(runs.find(settings.output_dir, settings.chat.run), settings)
        title = f"run {found.directory.name}"
    # what is imported below takes seconds, in which the user can type the first question
    with garbage.without_collections():
        if settings.chat.web:
            print(f"{title}: loading the models", flush=True)
            from gpt2_rlhf.rows import feedback_page as front
        else:
            prompt = "> " if sys.stdin and sys.stdin.isatty() else ""
            print(f"{title}; ask a question, /help lists commands, /quit ends", end=f"\n{prompt}", flush=True)
            from gpt2_rlhf.rows import feedback_terminal as front
    front.serve(settings)


if __name__ == "__main__":
    as_command.run("chat")
