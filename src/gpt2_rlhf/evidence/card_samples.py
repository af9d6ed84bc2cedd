"""Choose the answers that the report and the cards show by a fixed rule, the largest loss among them, and quote them.

Samples chosen by hand show what the chooser likes. The rule: the largest gain, the median and the largest loss from
SFT's answer to the policy's, in the data's utility, else in the judge's reward, else in the reward.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.config.printable import LAYOUT, printable
from gpt2_rlhf.evidence.tables import text

MOST_CHARACTERS = 600  # of one text

Line = Mapping[str, Any]  # of samples.jsonl

_WARNING = "Samples on held-out prompts. They are not filtered, and may be false, biased, offensive or harmful."


def change(line: Line, by: Metric) -> float | None:
    """Return how much a measure changed from SFT's answer to the policy's; None where it is unknown."""
    answers = line["answers"]
    before, after = (answers[name][by.key] for name in ("sft", methods.of(answers)))
    return None if before is None or after is None else after - before


def chosen(lines: Sequence[Line], by: Metric) -> list[tuple[str, Line]]:
    """Return the held-out lines that the rule chooses, each with what it is; with few of them none is chosen twice.

    by: a measure that all held-out answers have.
    """
    changes = sorted(((change(line, by) or 0, place) for place, line in enumerate(lines) if line["group"] == "heldout"))
    if not changes:
        return []
    last = len(changes) - 1
    highest = "Largest gain" if changes[last][0] > 0 else "Smallest loss"
    lowest = "Largest loss" if changes[0][0] < 0 else "Smallest gain"
    names = {last // 2: "Median", 0: lowest, last: highest}  # of one place, the last name holds
    return [(names[rank], lines[changes[rank][1]]) for rank in sorted(names, reverse=True)]


def markdown(lines: Sequence[Line], by: Metric, score_std: float) -> str:
    """Return the examples and the chosen lines as Markdown: the prompt, then each model's answer with its scores.

    Held-out ones are folded under a warning. by: as in `chosen`. score_std: standard deviation of the reward model's
    scores.
    """
    examples = [line for line in lines if line["group"] == "example"]
    shown = [_one(f"Example {number}", line) for number, line in enumerate(examples, start=1)]
    heldout = []
    for name, line in chosen(lines, by):
        in_sd = (change(line, metrics.REWARD) or 0) / score_std
        changes = (f"{one.label.lower()} {change(line, one):+z.2f}" for one in dict.fromkeys((by, metrics.REWARD)))
        heldout.append(_one(f"{name}: {', '.join(changes)} ({in_sd:+z.2f} SD) from SFT to {_label(line)}", line))
    fold = [f"<details>\n<summary>{_WARNING}</summary>", *heldout, "</details>"] if heldout else []
    return "\n\n".join([*shown, *fold])


def quoted(answer: str) -> str:
    """Return the text as a fenced block, cut where it is long; the fence is longer than any run of backticks inside."""
    shown = answer[:MOST_CHARACTERS]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    cut = f"\n\n(cut after {MOST_CHARACTERS} of {len(answer)} characters)" if len(answer) > MOST_CHARACTERS else ""
    return f"{fence}text\n{printable(shown, kept=LAYOUT)}\n{fence}{cut}"


def scores(answer: Mapping[str, Any]) -> str:
    """Return the scores of an answer in one line, those that the policy was not trained on first."""
    known = [one for one in metrics.MEASURES if answer[one.key] is not None]
    figures = [" ".join([one.label.lower().removesuffix("'s reward"), text(answer[one.key])]) for one in known]
    return ", ".join([*figures, f"{answer['tokens']} tokens", "ended" if answer["ended"] else "not ended"])


def _label(line: Line) -> str:
    return methods.LABELS[methods.of(line["answers"])]


def _one(heading: str, line: Line) -> str:
    parts = [f"### {heading}", quoted(line["prompt"].strip())]
    for name, title in {"base": "base", "sft": "SFT", methods.of(line["answers"]): _label(line)}.items():
        answer = line["answers"][name]
        parts += [f"{title} ({scores(answer)}):", quoted(answer["answer"].strip())]
    return "\n\n".join(parts)
