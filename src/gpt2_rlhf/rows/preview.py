"""Show rows as the trainers get them, so that a mistake in the encoding is found before a model is trained on it.

The rows are encoded with the trainers' own functions and decoded again. A prompt with a loss on it, or an answer
without EOS, can be seen here.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from gpt2_rlhf.config.printable import printable
from gpt2_rlhf.models import tokens

ROWS_SHOWN = 2  # of each table
_CHARACTERS_SHOWN = 400

Parts = list[tuple[str, list[int]]]  # label and tokens


def preview(tokenizer: PreTrainedTokenizerBase, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the first rows of the sft, reward and ppo tables as text; line breaks are shown as \\n."""
    shown = (
        ("sft", tokens.encode_sft, _sft),
        ("reward", tokens.encode_reward, _reward),
        ("ppo", tokens.encode_ppo, _ppo),
    )
    lines: list[str] = []
    for name, encode, parts_of in shown:
        rows = tables[name][:ROWS_SHOWN]
        for row, encoded in zip(rows, encode(tokenizer, rows), strict=True):
            sizes, parts = parts_of(encoded)
            lines.append(f"{name}: {row['row']} ({row['subset'] or 'no subset'}), {sizes}")
            lines += [*(_line(label, tokenizer, ids) for label, ids in parts), ""]
    return "\n".join(map(printable, lines)).rstrip("\n")


def _sft(row: tokens.Columns) -> tuple[str, Parts]:
    labelled = zip(row["input_ids"], row["labels"], strict=True)
    runs = groupby(labelled, key=lambda item: "context" if item[1] == -100 else "trained")
    parts = [(label, [token for token, _ in run]) for label, run in runs]
    trained = sum(len(ids) for label, ids in parts if label == "trained")
    return f"{len(row['input_ids'])} tokens, loss on {trained}", parts


def _reward(row: tokens.Columns) -> tuple[str, Parts]:
    chosen, rejected = row["chosen_ids"], row["rejected_ids"]
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    parts = [("shared", chosen[:shared]), ("chosen", chosen[shared:]), ("rejected", rejected[shared:])]
    return f"{len(chosen)} tokens chosen, {len(rejected)} rejected, scored at the last", parts


def _ppo(row: tokens.Columns) -> tuple[str, Parts]:
    ids = row["input_ids"]
    return f"{len(ids)} tokens, PPO samples the answer", [("prompt", ids)]


def _line(label: str, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return a label with the decoded tokens; a long text keeps its start and end and loses its middle."""
    shown = printable(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
    if len(shown) > _CHARACTERS_SHOWN:
        shown = f"{shown[: _CHARACTERS_SHOWN // 2]} [...] {shown[-_CHARACTERS_SHOWN // 2 :]}"
    return f"  {label:<9}{len(ids):>5} | {shown}"
