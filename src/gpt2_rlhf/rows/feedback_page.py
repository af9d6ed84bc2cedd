"""A page for the browser on which one asks all models and chooses the better answer, made with Gradio.

It is reached from this machine only and requests nothing from another. Texts of people, data and models are shown in
text fields, which interpret neither HTML nor Markdown.
"""

import base64
import itertools
import os
import random
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.models.chat_models import of_run
from gpt2_rlhf.rows import feedback
from gpt2_rlhf.rows.feedback import Conversation
from gpt2_rlhf.rows.transcripts import ASSISTANT, HUMAN
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.files import read_json_lines

_EXAMPLES = 6


@dataclass(frozen=True)
class _View:
    """What one browser tab shows: a conversation, and which column is in which place."""

    conversation: Conversation
    order: tuple[str, ...] = ()
    is_blind: bool = False


def serve(settings: Settings) -> None:
    """Serve the page until Ctrl-C."""
    page = build(feedback.start(settings), settings)
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server whether it runs, not the proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    font = ("system-ui", "sans-serif")  # Gradio's own would be loaded from Google
    _, address, public = page.launch(
        server_name="127.0.0.1",  # GRADIO_SERVER_NAME could open it to the network
        share=settings.chat.share,
        theme=Default(font=font, font_mono=("ui-monospace", "monospace")),
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
    )
    print(
        f"the page is at {address}{f' and, for everybody, at {public}' if public else ''}; Ctrl-C ends it", flush=True
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def build(first: Conversation, settings: Settings) -> gr.Blocks:
    """Return the page, which starts with this conversation."""
    folder = None if settings.chat.named_models else runs.find(settings.output_dir, settings.chat.run)
    places = range(len(first.models.policies) + 1)  # the last for best of n
    unchanged = [gr.skip()] * (4 * len(places))

    def shown(view: _View, is_final: bool) -> list[Any]:
        """Return the updates of all places: the column, the transcript, the figures, the button."""
        updates: list[Any] = []
        replies = view.conversation.replies
        for place, name in itertools.zip_longest(places, view.order):
            if name is None:
                updates += [gr.Column(visible=False), gr.Textbox(""), gr.Textbox(""), gr.Button(interactive=False)]
                continue
            label = f"Answer {place + 1}" if view.is_blind else name
            figures = "shown once you have chosen" if view.is_blind else replies[name].figures
            updates += [
                gr.Column(visible=True),
                gr.Textbox(replies[name].transcript, label=label),
                gr.Textbox(figures, label=f"{label}: scores"),
                gr.Button(f"{label} is better", interactive=is_final),
            ]
        return updates

    def ask(view: _View | None, question: str, best_of: float, seed: str, is_blind: bool) -> Iterator[Any]:
        before = view.conversation if view else first
        kept = [view, gr.skip(), *unchanged]
        if not question.strip():
            yield [*kept, "type a question"]
            return
        try:
            before = replace(before, best_of=int(best_of))
            before = replace(before, seed=feedback.seed(seed))
            columns = tuple(before.columns)
            order = tuple(random.sample(columns, len(columns))) if is_blind else columns
            asked = before
            for asked in feedback.ask(before, question):
                view = _View(asked, order, is_blind)
                yield [view, gr.skip(), *shown(view, is_final=False), f"answering, seed {asked.drawn_with}"]
            view = _View(asked.continued(), order, is_blind)
            yield [view, "", *shown(view, is_final=True), f"seed {asked.drawn_with}; which answer is better?"]
        except UserError as error:
            yield [*kept, f"error: {error}"]

    def choose(view: _View, place: int) -> list[Any]:
        try:
            conversation, done = feedback.prefer(view.conversation, view.order[place], settings.preferences_file)
        except UserError as error:
            return [view, *unchanged, f"error: {error}"]
        view = replace(view, is_blind=False)
        said = f"{done}. To look at the pairs: make data {shlex.quote(f'data.path={settings.preferences_file}')}"
        return [replace(view, conversation=conversation), *shown(view, is_final=False), said]

    def restart(view: _View | None) -> list[Any]:
        conversation = (view.conversation if view else first).restarted()
        return [_View(conversation), *shown(_View(conversation), is_final=False), "a new conversation"]

    def switch(name: str) -> list[Any]:
        try:
            view = _View(feedback.start(of_run(settings, name)))
        except UserError as error:
            return [*[gr.skip()] * 3, *unchanged, f"error: {error}"]
        folder = runs.find(settings.output_dir, name)
        updates = [gr.Dataset(samples=_examples(folder)), _curve(folder), *shown(view, is_final=False)]
        return [view, *updates, f"talking to run {name}"]

    with gr.Blocks(title="gpt2-rlhf", analytics_enabled=False) as page:
        view = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3):
                question = gr.Textbox(label="Your question to all models", autofocus=True, max_length=10_000)
                with gr.Row():
                    send = gr.Button("Send", variant="primary")
                    new = gr.Button("New conversation")
                status = gr.Textbox("ask a question", label="Status", interactive=False)
                answers: list[Any] = []
                buttons: list[gr.Button] = []
                with gr.Row():
                    for _ in places:
                        with gr.Column(min_width=200, visible=False) as column:
                            answer = gr.Textbox(lines=8, max_lines=24, interactive=False)
                            figures = gr.Textbox(interactive=False)
                            buttons.append(gr.Button(interactive=False))
                        answers += [column, answer, figures, buttons[-1]]
                curve = gr.HTML(_curve(folder))
            with gr.Column(scale=1, min_width=260):
                examples = gr.Dataset(
                    components=[question], samples=_examples(folder), label="Examples", visible=folder is not None
                )
                best_of = gr.Slider(
                    1, max(16, first.best_of), first.best_of, step=1, label="Best of n SFT answers (1: none)"
                )
                seed = gr.Textbox(
                    "" if first.seed is None else str(first.seed), label="Seed (empty: new random numbers each time)"
                )
                is_blind = gr.Checkbox(label="Hide names and scores until I have chosen")
                names = runs.finished(settings.output_dir)
                run = gr.Dropdown(
                    names, value=folder and folder.resolve().name, label="Run", visible=folder is not None
                )
        places_and_status = [*answers, status]
        for event in (question.submit, send.click):
            event(ask, [view, question, best_of, seed, is_blind], [view, question, *places_and_status])
        for place, button in enumerate(buttons):
            button.click(lambda view, place=place: choose(view, place), [view], [view, *places_and_status])
        new.click(restart, [view], [view, *places_and_status])
        examples.click(lambda chosen: chosen[0], [examples], [question])
        run.input(switch, [run], [view, examples, curve, *places_and_status])
    return page


def _examples(folder: Path | None) -> list[list[str]]:
    """Return the first questions of the run's samples that stand alone."""
    if folder is None:
        return []
    prompts = [line["prompt"] for line in read_json_lines(folder / "samples.jsonl")[:50]]
    alone = [prompt for prompt in prompts if prompt.startswith(HUMAN) and prompt.count(HUMAN) == 1]
    return [[prompt.removeprefix(HUMAN).removesuffix(ASSISTANT).strip()] for prompt in alone[:_EXAMPLES]]


def _curve(folder: Path | None) -> str:
    """Return the report's picture of the training as an image, or PPO's curves; nothing if there is neither."""
    places = [] if folder is None else [folder / "report" / "training.png", folder / "ppo" / "ppo.png"]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return ""
    picture = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="Curves of the training by update" style="width: 100%" src="data:image/png;base64,{picture}">'
