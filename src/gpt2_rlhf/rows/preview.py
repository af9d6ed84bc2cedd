"""Show the prepared data as a person must see it to trust it: what was dropped and why, and what a trainer is handed.

The rows are encoded by the functions that the trainers use and decoded back, so that a prompt that is trained on, or an
EOS that is missing, shows here and not as a model that never stops.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gpt2_rlhf.models import tokens

ROWS_SHOWN = 2
NAMES_SHOWN = 10
_CHARACTERS_SHOWN = 400


def read_report(directory: Path) -> dict[str, Any]:
    """Read the row report that the data stage left in its directory."""
    return json.loads((directory / "data.json").read_text(encoding="utf-8"))


def report_text(report: Mapping[str, Any]) -> str:
    """The row report of data.json as a table, a line for each reason with the first rows it names."""
    train, test = report["train"], report["test"]
    lines = [
        f"data: {report['source']}",
        "",
        _cells("rows", "train", "test"),
        _cells("read", train["read"], test["read"]),
    ]
    for reason in sorted({*train["dropped"], *test["dropped"]}):
        names = [train["dropped"].get(reason, []), test["dropped"].get(reason, [])]
        lines.append(f"{_cells(f'- {reason}', *map(len, names))}   {_shortened([*names[0], *names[1]])}")
    lines.append(_cells("kept", train["kept"], test["kept"]))
    lines.append(_cells("  of these with turns cut", train["turns_cut"], test["turns_cut"]))
    lines += [
        _cells(f"  of these {subset or '(no subset)'}", found["train"], found["test"])
        for subset, found in report["subsets"].items()
    ]
    if report["held_out_prompts"]:
        lines.append(f"no test file: {report['held_out_prompts']} prompts were held out as the test set")
    lines += ["", _cells("table", "pairs", "prompts")]
    lines += [_cells(name, size["pairs"], size["prompts"]) for name, size in report["tables"].items()]
    lines += ["", _cells("tokens, median / p95 / max", "train", "test", width=24)]
    for part in ("prompt", "chosen", "rejected"):
        spreads = [" / ".join(f"{value}" for value in side["tokens"][part].values()) for side in (train, test)]
        lines.append(_cells(part, *spreads, width=24))
    lines.append(f"limits: {report['max_prompt_tokens']} prompt, {report['max_answer_tokens']} answer, EOS apart")
    shares = [side["longer_answer_wins"] for side in (train, test)]
    texts = [f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]" for share in shares]
    return "\n".join([*lines, _cells("longer answer wins, 95 %", *texts, width=24)])


def preview(tokenizer: PreTrainedTokenizerBase, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The first rows of the sft, reward and ppo tables as the trainers see them; line breaks are shown as \\n."""
    lines: list[str] = []
    for row in tables["sft"][:ROWS_SHOWN]:
        lines += _sft_lines(tokenizer, row)
    for row in tables["reward"][:ROWS_SHOWN]:
        lines += _reward_lines(tokenizer, row)
    for row in tables["ppo"][:ROWS_SHOWN]:
        ids = tokens.encode_ppo(tokenizer, row)["input_ids"]
        lines += [_title("ppo", row, f"{len(ids)} tokens, to be answered"), _line("prompt", tokenizer, ids), ""]
    return "\n".join(lines).rstrip("\n")


def _sft_lines(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[str]:
    encoded = tokens.encode_sft(tokenizer, row)
    runs: list[tuple[bool, list[int]]] = []  # neighbours that are alike in being trained on
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        is_trained = label != -100
        if not runs or runs[-1][0] != is_trained:
            runs.append((is_trained, []))
        runs[-1][1].append(token)
    trained = sum(len(ids) for is_trained, ids in runs if is_trained)
    title = _title("sft", row, f"{len(encoded['input_ids'])} tokens, loss on {trained}")
    return [title, *(_line("trained" if is_trained else "context", tokenizer, ids) for is_trained, ids in runs), ""]


def _reward_lines(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[str]:
    encoded = tokens.encode_reward(tokenizer, row)
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
    """The decoded tokens after their label; the middle of a long text is left out, its end never."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # escapes would reach the terminal: a data set may hold anything
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    if len(shown) > _CHARACTERS_SHOWN:
        shown = f"{shown[: _CHARACTERS_SHOWN // 2]} [...] {shown[-_CHARACTERS_SHOWN // 2 :]}"
    return f"  {label:<9}{len(ids):>5} | {shown}"


def _cells(label: str, left: object, right: object, width: int = 9) -> str:
    return f"{label:<27}{left!s:>{width}}{right!s:>{width}}"


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f", and {more} more" if more > 0 else "")
