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


def preview(tokenizer: PreTrainedTokenizerBase, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the first rows of the sft, reward and ppo tables as text; line breaks are shown as \\n."""
    lines: list[str] = []
    sft, reward, ppo = (tables[name][:ROWS_SHOWN] for name in ("sft", "reward", "ppo"))
    for row, encoded in zip(sft, tokens.encode_sft(tokenizer, sft), strict=True):
        lines += _sft_lines(tokenizer, row, encoded)
    for row, encoded in zip(reward, tokens.encode_reward(tokenizer, reward), strict=True):
        lines += _reward_lines(tokenizer, row, encoded)
    for row, encoded in zip(ppo, tokens.encode_ppo(tokenizer, ppo), strict=True):
        ids = encoded["input_ids"]
        lines += [_title("ppo", row, f"{len(ids)} tokens, PPO samples the answer"), _line("prompt", tokenizer, ids), ""]
    return "\n".join(map(printable, lines)).rstrip("\n")


def _sft_lines(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], encoded: tokens.Columns) -> list[str]:
    labelled = zip(encoded["input_ids"], encoded["labels"], strict=True)
    runs = [
        (is_trained, [token for token, _ in run])
        for is_trained, run in groupby(labelled, key=lambda item: item[1] != -100)
    ]
    trained = sum(len(ids) for is_trained, ids in runs if is_trained)
    title = _title("sft", row, f"{len(encoded['input_ids'])} tokens, loss on {trained}")
    return [title, *(_line("trained" if is_trained else "context", tokenizer, ids) for is_trained, ids in runs), ""]


def _reward_lines(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], encoded: tokens.Columns) -> list[str]:
    chosen, rejected = encoded["chosen_ids"], encoded["rejected_ids"]
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    return [
        _title("reward", row, f"{len(chosen)} tokens chosen, {len(rejected)} rejected, scored at the last"),
        _line("shared", tokenizer, chosen[:shared]),
        _line("chosen", tokenizer, chosen[shared:]),
        _line("rejected", tokenizer, rejected[shared:]),
        "",
    ]


def _title(table: str, row: Mapping[str, Any], sizes: str) -> str:
    return f"{table}: {row['row']} ({row['subset'] or 'no subset'}), {sizes}"


def _line(label: str, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return a label with the decoded tokens; a long text keeps its start and end and loses its middle."""
    shown = printable(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
    if len(shown) > _CHARACTERS_SHOWN:
        shown = f"{shown[: _CHARACTERS_SHOWN // 2]} [...] {shown[-_CHARACTERS_SHOWN // 2 :]}"
    return f"  {label:<9}{len(ids):>5} | {shown}"
