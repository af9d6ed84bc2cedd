"""Ask several models the same questions, and turn what a person prefers into pairs that `data.path` reads.

The models draw their answers with the same random numbers, as in the evaluation, and each continues its own
conversation. After a preference all continue from the preferred answer, as in the collection of hh-rlhf (Bai et al.
2022, arXiv:2204.05862, section 2): a pair needs one prompt, and so answers to different conversations make no pair.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.printable import LAYOUT, printable
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence.answers import finite_scores, scored_sequences
from gpt2_rlhf.models import chat_models, tokens
from gpt2_rlhf.models.chat_models import Models
from gpt2_rlhf.models.sampling import Answer, stream
from gpt2_rlhf.rows.transcripts import ASSISTANT, HUMAN, Unusable, fit_prompts, pair

BEST_OF = "sft"  # the model whose answers best of n chooses from


@dataclass(frozen=True)
class Reply:
    """An answer to a prompt, as far as it is sampled."""

    prompt: str
    answer: Answer
    is_complete: bool
    scores: Mapping[str, float]  # by scorer, once it is complete

    @property
    def text(self) -> str:
        """The answer as a terminal or a page may show it."""
        return printable(self.answer.text.strip(), kept=LAYOUT)

    @property
    def transcript(self) -> str:
        """The whole conversation so far, in the same way."""
        return f"{printable(self.prompt.strip(), kept=LAYOUT)} {self.text}"

    @property
    def figures(self) -> str:
        """Scores, length, and whether the answer ended, in words; while it is sampled, its length alone."""
        length = f"{len(self.answer.ids)} tokens"
        if not self.is_complete:
            return length
        scores = [f"{name} {score:.2f}" for name, score in self.scores.items()]
        return ", ".join([*scores, length, "ended" if self.answer.ended else "cut at the limit"])


@dataclass(frozen=True)
class Conversation:
    """A conversation with all models: what is set, and what was said.

    Raises:
        UserError: names a setting that these models cannot answer with.
    """

    models: Models
    seed: int | None  # None: new random numbers for each question
    best_of: int  # above 1: one more column, the best of this many SFT answers
    said: Mapping[str, str] = field(default_factory=dict)  # the transcript of each column before the last question
    replies: Mapping[str, Reply] = field(default_factory=dict)  # to the last question, by column
    drawn_with: int | None = None  # the seed of the replies
    turn: int = 0  # how many questions were answered before

    def __post_init__(self) -> None:
        models = self.models
        if self.best_of > 1 and not (BEST_OF in models.policies and "reward" in models.scorers):
            raise UserError(f"chat.best_of: {self.best_of}, but there is no {BEST_OF} or no reward model; set it to 1")
        if models.most_prompt_tokens < 1:
            longest = models.most_prompt_tokens + models.max_new_tokens - 1
            raise UserError(
                f"chat.max_new_tokens: {models.max_new_tokens}; expected at most {longest}, which leaves room for a "
                "prompt in the models' positions"
            )

    @property
    def columns(self) -> dict[str, str]:
        """The model of each column of answers."""
        best = {f"best of {self.best_of} {BEST_OF}": BEST_OF} if self.best_of > 1 else {}
        return {name: name for name in self.models.policies} | best

    def continued(self) -> "Conversation":
        """Return the conversation after its replies: each column continues with its own."""
        said = {**self.said, **{name: _transcript(reply) for name, reply in self.replies.items()}}
        return replace(self, said=said, turn=self.turn + 1)

    def restarted(self) -> "Conversation":
        """Return a new conversation with the same settings."""
        return Conversation(self.models, self.seed, self.best_of)


def start(settings: Settings) -> Conversation:
    """Load the models, and start a conversation with them.

    Raises:
        UserError: as `chat_models.load` and `Conversation`.
    """
    return Conversation(chat_models.load(settings), settings.chat.seed, settings.chat.best_of)


def seed(typed: str) -> int | None:
    """Return the seed that was typed, or None for an empty text.

    Raises:
        UserError: it is no seed.
    """
    if not typed.strip():
        return None
    if not typed.strip().isdecimal() or int(typed) >= 2**32:
        raise UserError(
            f"seed: {typed}; expected a whole number from 0 to {2**32 - 1}, or nothing for new ones each time"
        )
    return int(typed)


def ask(conversation: Conversation, question: str) -> Iterator[Conversation]:
    """Yield the conversation with the replies to a question, after each token of each; the last has their scores.

    Raises:
        UserError: the question cannot be asked, or a score is not finite.
    """
    models, columns = conversation.models, conversation.columns
    said = conversation.said  # a new column of best of n starts from what its model said
    prompts = {name: _prompt(models, said.get(name, said.get(model, "")), question) for name, model in columns.items()}
    used_seed = secrets.randbelow(2**32) if conversation.seed is None else conversation.seed + conversation.turn
    generator = torch.Generator().manual_seed(used_seed)
    draws = torch.rand(conversation.best_of, models.max_new_tokens, dtype=torch.float64, generator=generator)
    replies = {name: Reply(prompt, Answer("", [], ended=False), False, {}) for name, prompt in prompts.items()}
    streams = {
        name: stream(
            models.policies[model],
            models.tokenizer,
            prompts[name],
            draws[:1] if name == model else draws,
            models.temperature,
        )
        for name, model in columns.items()
    }
    answers: dict[str, list[Answer]] = {}
    while streams:
        for name in list(streams):
            if (sampled := next(streams[name], None)) is None:
                del streams[name]
                replies[name] = _best(models, prompts[name], answers[name])
            else:
                answers[name] = sampled
                replies[name] = replace(replies[name], answer=sampled[0])
        yield replace(conversation, replies=dict(replies), drawn_with=used_seed)


def prefer(conversation: Conversation, column: str, path: Path) -> tuple[Conversation, str]:
    """Append a pair for each answer that the column's is better than; return how all go on from it, and what was done.

    Raises:
        UserError: there is no such reply, or the file cannot be written.
    """
    if column not in conversation.replies:
        raise UserError(f"{column}: expected one of the last answers: {', '.join(conversation.replies) or 'none yet'}")
    preferred, rows, reasons = conversation.replies[column], dict[str, dict[str, Any]](), list[str]()
    others = {name: reply for name, reply in conversation.replies.items() if name != column}
    for name, other in others.items():
        row = {
            "prompt": preferred.prompt,
            "chosen": _own_turn(preferred),
            "rejected": _own_turn(other),
            "chosen_model": column,
            "rejected_model": name,
        }
        try:
            if other.prompt != preferred.prompt:
                raise Unusable("answers another conversation")
            pair(row, subset="", row="")
            rows.setdefault(row["rejected"], row)
        except Unusable as reason:
            reasons.append(f"{name}: {reason}")
    if rows:
        _append(path, rows.values())
    better_than = ", ".join(row["rejected_model"] for row in rows.values())
    done = f"kept in {path}: {column} better than {better_than}" if rows else "no pair kept"
    agreed = dict.fromkeys(conversation.columns, _transcript(preferred))
    return replace(conversation, said=agreed, replies={}), "; ".join([done, *reasons, "all go on from this answer"])


def _prompt(models: Models, said: str, question: str) -> str:
    """Return the prompt of a column; of a conversation too long for the models, the earliest turns are left out."""
    tokenizer = models.tokenizer
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError("the question has half a character; type it again in UTF-8") from None
    for word in (HUMAN, ASSISTANT, *tokens.special_tokens(tokenizer)):
        if word in question:
            raise UserError(
                f"the question contains {word.strip()}, which the models read as the end of a turn; leave it out"
            )

    def count(prompts: list[str]) -> list[int]:
        return [len(ids) for ids in tokens.encode_prompts(tokenizer, prompts)]

    prompt = f"{said}{HUMAN} {question.strip()}{ASSISTANT}"
    (fitted,) = fit_prompts([prompt], models.most_prompt_tokens, count)
    if fitted is None:
        alone = count([prompt[prompt.rfind(HUMAN) :]])[0]
        raise UserError(f"the question has {alone} tokens; expected at most {models.most_prompt_tokens}; shorten it")
    return fitted[0]


def _best(models: Models, prompt: str, answers: list[Answer]) -> Reply:
    """Return the reply with the highest reward, or the only one; the first of equals."""
    sequences = scored_sequences(models.tokenizer, [prompt] * len(answers), answers)
    scores = {
        name: finite_scores("chat", name, model, sequences, len(sequences)) for name, model in models.scorers.items()
    }
    best = int(scores["reward"].argmax()) if len(answers) > 1 else 0
    return Reply(prompt, answers[best], True, {name: float(values[best]) for name, values in scores.items()})


def _own_turn(reply: Reply) -> str:
    """Return the answer without the turns that a model may write after its own."""
    return re.split(f"{HUMAN}|{ASSISTANT}", reply.answer.text)[0]


def _transcript(reply: Reply) -> str:
    return f"{reply.prompt} {_own_turn(reply).strip()}".rstrip()  # as in the rows, whatever space a tokenizer decodes


def _append(path: Path, rows: Any) -> None:
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            is_whole_line = file.read() in (b"", b"\n")
            file.write(("" if is_whole_line else "\n").encode() + lines.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); set chat.preferences=<another file>") from error
