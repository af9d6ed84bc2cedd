"""The row report, data.json: how many rows of the source were read, kept and dropped, and which tables they became."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.printable import printable
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.rows.cleaning import Cleaned, Measured, Side
from gpt2_rlhf.rows.sources import describe
from gpt2_rlhf.rows.transcripts import ASSISTANT, Pair
from gpt2_rlhf.store.files import read_json

_NAMES_SHOWN = 10


def make(
    data: Data, cleaned: Cleaned, tables: Mapping[str, Sequence[Pair]], not_read: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the report on the whole source, as data.json has it; its rows may be more than the tables take."""
    subsets = {
        name: Counter(measured.pair.subset for measured in side.kept)
        for name, side in (("train", cleaned.train), ("test", cleaned.test))
    }
    return {
        "source": describe(data),
        "prompts_end_alike": _shared_end(cleaned.train.kept),
        "not_read": list(not_read),
        "held_out_prompts": cleaned.held_out_prompts,
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_answer_tokens": data.max_answer_tokens,
        "train": _side(cleaned.train),
        "test": _side(cleaned.test),
        "tables": {
            name: {"pairs": len(pairs), "prompts": len({row.prompt for row in pairs})} for name, pairs in tables.items()
        },
        "subsets": {
            subset: {name: found[subset] for name, found in subsets.items()}
            for subset in sorted(set().union(*subsets.values()))
        },
    }


def write(directory: Path, report: Mapping[str, Any]) -> None:
    """Write data.json into the data stage's directory."""
    (directory / "data.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


def read(directory: Path) -> dict[str, Any]:
    """Read data.json from the data stage's directory."""
    return read_json(directory / "data.json")


def counts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report with numbers of rows in place of their names."""
    numbers = dict(report)
    for side in ("train", "test"):
        dropped = {reason: len(names) for reason, names in report[side]["dropped"].items()}
        numbers[side] = {**report[side], "dropped": dropped, "other_markers": len(report[side]["other_markers"])}
    return numbers


def text(report: Mapping[str, Any]) -> str:
    """Return the report as a table for the terminal; the line of a reason ends with the first rows it applies to."""
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
    replaced = [side["other_markers"] for side in (train, test)]
    if any(replaced):
        counted = _cells("  with markers replaced", *map(len, replaced))
        lines.append(f"{counted}   {_shortened([*replaced[0], *replaced[1]])}")
    lines.append(_cells("  of these with turns cut", train["turns_cut"], test["turns_cut"]))
    lines += [
        _cells(f"  of these {subset or '(no subset)'}", found["train"], found["test"])
        for subset, found in report["subsets"].items()
    ]
    lines += notices(report)
    lines += ["", _cells("table", "pairs", "prompts")]
    lines += [_cells(name, size["pairs"], size["prompts"]) for name, size in report["tables"].items()]
    lines += ["", _cells("tokens, median / p95 / max", "train", "test", width=24)]
    for part in ("prompt", "chosen", "rejected"):
        spreads = [" / ".join(f"{value}" for value in side["tokens"][part].values()) for side in (train, test)]
        lines.append(_cells(part, *spreads, width=24))
    lines.append(f"limits: {report['max_prompt_tokens']} prompt, {report['max_answer_tokens']} answer, EOS not counted")
    shares = [side["longer_answer_wins"] for side in (train, test)]
    intervals = [f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]" for share in shares]
    lines.append(_cells("longer answer wins, 95 %", *intervals, width=24))
    return "\n".join(map(printable, lines))


def notices(report: Mapping[str, Any]) -> list[str]:
    """Return what a user may have to act on, a line each, such as files not read or unknown markers."""
    lines = []
    if report["held_out_prompts"]:
        lines.append(f"no test file: {report['held_out_prompts']} prompts were held out as the test set")
    if "answers" in report:
        end = report["answers"]["end"]
        lines.append(f"prompts are in the model's chat template; an answer ends with {end}, the EOS of all stages")
    if report["not_read"]:
        lines.append(f"files not read: {_shortened(report['not_read'])}")
    if end := report["prompts_end_alike"]:
        lines.append(
            f"{end['prompts']} of {report['train']['kept']} training prompts end with {end['word']!r}; if it marks a "
            'turn, remove it from the prompts, since "Assistant:" follows it'
        )
    return [printable(line) for line in lines]


def _side(side: Side) -> dict[str, Any]:
    kept = side.kept
    longer = sum(m.chosen_tokens > m.rejected_tokens for m in kept)
    ties = sum(m.chosen_tokens == m.rejected_tokens for m in kept)
    return {
        "read": side.rows_read,
        "dropped": side.dropped,
        "kept": len(kept),
        "other_markers": side.other_markers,
        "turns_cut": side.turns_cut,
        "tokens": {
            "prompt": _spread([m.prompt_tokens for m in kept]),
            "chosen": _spread([m.chosen_tokens for m in kept]),
            "rejected": _spread([m.rejected_tokens for m in kept]),
        },
        # accuracy of a reward model that always prefers the longer answer; a tie counts half
        "longer_answer_wins": wilson(longer + ties / 2, len(kept)),
    }


def _shared_end(kept: Sequence[Measured]) -> dict[str, Any] | None:
    """Return the word that most prompts end with, and how many do, if it looks like a marker of a turn."""
    ends = Counter(measured.pair.prompt.removesuffix(ASSISTANT).rsplit(None, 1)[-1] for measured in kept)
    word, prompts = ends.most_common(1)[0]
    return {"word": word, "prompts": prompts} if set(word) & set(":<>[]|#") and prompts > len(kept) / 2 else None


def _spread(values: list[int]) -> dict[str, int]:
    """Return the nearest-rank median and 95th percentile, and the maximum."""
    ordered, shares = sorted(values), {"median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in shares.items()}


def _cells(label: str, left: object, right: object, width: int = 9) -> str:
    return f"{label:<27}{left!s:>{width}}{right!s:>{width}}"


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f", and {more} more" if more > 0 else "")
