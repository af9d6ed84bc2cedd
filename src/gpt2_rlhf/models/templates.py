"""The two forms in which a model reads a prompt: the transcript of its row as it is, or its own chat template.

Rows hold transcripts with the markers of Anthropic/hh-rlhf, whatever the form is. For a chat template they are read
back as messages. What the template puts around an answer is found by rendering one; nothing is known by a model's name.
"""

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from gpt2_rlhf.config.errors import UserError, one_line

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
SYSTEM = "\n\nSystem:"

# The chat template of a model that reads transcripts. One that its base model had would render another form.
TRANSCRIPT = (
    "{% for message in messages %}"
    "{{ {'system': '\\n\\nSystem: ', 'user': '\\n\\nHuman: ', 'assistant': '\\n\\nAssistant: '}[message['role']] }}"
    "{{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}"
    "{% elif messages[-1]['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
)
# Otherwise the ids of a row would change from day to day, and with them the model; the day is Llama 3.1's own default.
_FIXED_DAY = "{%- macro strftime_now(format) -%}{{ '26 Jul 2024' if '%b' in format else '2024-07-26' }}{%- endmacro -%}"

Messages = list[dict[str, str]]


class Refused(Exception):
    """The template does not take a conversation; the message is the template's."""


def messages(transcript: str) -> Messages:
    """Return the turns of a transcript; what precedes its first Human or Assistant turn is the system message."""
    opening, *turns = re.split(f"({HUMAN}|{ASSISTANT})", transcript.removesuffix(ASSISTANT))
    system = opening.removeprefix(SYSTEM).strip()
    found = [{"role": "system", "content": system}] if system else []
    for marker, text in zip(turns[::2], turns[1::2], strict=True):
        found.append({"role": "user" if marker == HUMAN else "assistant", "content": text.strip()})
    return found


def with_fixed_values(template: str, eos_token: str, end: str) -> str:
    """Return a template that renders the same on every day, and after `end` has become the tokenizer's EOS."""
    if "strftime_now" in template and not template.startswith(_FIXED_DAY):
        template = _FIXED_DAY + template
    if "eos_token" in template and end != eos_token:
        template = f"{{%- set eos_token = {eos_token!r} -%}}{template}"
    return template


def render(template: str, named: Mapping[str, Any], turns: Messages, *, for_answer: bool) -> str:
    """Return the text of a conversation. named: the special tokens by their names, such as eos_token.

    for_answer: the text ends where the assistant's answer starts.

    Raises:
        Refused: the template raises an error, such as for roles that it does not know.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template  # a second to import, but without torch

    try:
        (text,), _ = render_jinja_template([turns], chat_template=template, add_generation_prompt=for_answer, **named)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise Refused(one_line(error)) from error
    return text


def around_answer(template: str | None, named: Mapping[str, Any], backend: Tokenizer) -> tuple[str, str | None]:
    """Return the white space before an answer, and the token that ends it; None if the template puts nothing there.

    Raises:
        UserError: there is no template, it refuses a question with an answer, it puts text between the two, or an
            answer ends with something other than one token.
    """
    if not template:
        raise _unusable("has none; choose a model that has been trained with one")
    question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
    try:
        prompt = render(template, named, [question], for_answer=True)
        whole = render(template, named, [question, answer], for_answer=False)
    except Refused as reason:
        raise _unusable(f"refuses a question and its answer ({reason})") from reason
    before, found, end = whole.removeprefix(prompt).partition("answer")
    if not whole.startswith(prompt) or not found or before.strip():
        raise _unusable(f"continues {prompt[-40:]!r} with {whole[-40:]!r}, and so puts text before the answer itself")
    added = [*(token.content for token in backend.get_added_tokens_decoder().values()), *map(str, named.values())]
    ends = [token for token in added if token and end.lstrip().startswith(token)]
    if end.strip() and not ends:
        raise _unusable(f"ends an answer with {end.strip()!r}, which is not one token of the vocabulary")
    return before, max(ends, key=len, default=None)


def _unusable(fault: str) -> UserError:
    return UserError(f"data.template: chat, but the model's chat template {fault}; set data.template=null")
