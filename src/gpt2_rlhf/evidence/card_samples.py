"""Choose the answers that a card shows by a fixed rule, the worst among them, and quote them.

Samples chosen by hand show what the chooser likes; these are the largest rise, the median and the largest falls.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.printable import LAYOUT, printable
from gpt2_rlhf.evidence.tables import text

MOST_CHARACTERS = 600  # of one text
SHOWN = {"base": "base", "sft": "SFT", "ppo": "PPO"}

Line = Mapping[str, Any]  # of samples.jsonl


_WARNING = "Samples on held-out prompts. They are not filtered, and may be false, biased, offensive or harmful."


def chosen(lines: Sequence[Line]) -> list[tuple[str, Line]]:
    """Return the lines that the rule chooses, each with a heading; with few held-out prompts none is shown twice."""
    examples = [line for line in lines if line["group"] == "example"]
    heldout = sorted((line for line in lines if line["group"] == "heldout"), key=change)
    last = len(heldout) - 1
    places = {"largest rise": last, "median": last // 2, "lowest": 0, "second lowest": 1}
    picked: dict[int, str] = {}
    for name, place in places.items():
        if place < len(heldout):
            picked.setdefault(place, name)
    return [
        *((f"Example {number}", line) for number, line in enumerate(examples, start=1)),
        *((f"Held out, {name}", heldout[place]) for place, name in picked.items()),
    ]


def markdown(lines: Sequence[Line], score_std: float) -> str:
    """Return the chosen lines as Markdown: the prompt, then each model's answer with its scores.

    Held-out ones are folded under a warning. score_std: the standard deviation of the reward model's scores.
    """
    found = [(line["group"] == "heldout", _one(heading, line, score_std)) for heading, line in chosen(lines)]
    examples, heldout = ([one for folded, one in found if folded == is_folded] for is_folded in (False, True))
    fold = [f"<details>\n<summary>{_WARNING}</summary>", *heldout, "</details>"] if heldout else []
    return "\n\n".join([*examples, *fold])


def quoted(answer: str) -> str:
    """Return the text as a fenced block, cut where it is long; the fence is longer than any run of backticks inside."""
    shown = answer[:MOST_CHARACTERS]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    cut = f"\n\n(cut after {MOST_CHARACTERS} of {len(answer)} characters)" if len(answer) > MOST_CHARACTERS else ""
    return f"{fence}text\n{printable(shown, kept=LAYOUT)}\n{fence}{cut}"


def change(line: Line) -> float:
    """Return how much the reward changed from SFT's answer to PPO's."""
    return line["answers"]["ppo"]["reward"] - line["answers"]["sft"]["reward"]


def _one(heading: str, line: Line, score_std: float) -> str:
    rise = f": reward {change(line):+z.2f} ({change(line) / score_std:+z.2f} SD) from SFT to PPO"
    rise = rise if line["group"] == "heldout" else ""
    parts = [f"### {heading}{rise}", quoted(line["prompt"].strip())]
    for name, title in SHOWN.items():
        answer = line["answers"][name]
        parts += [f"{title} ({_scores(answer)}):", quoted(answer["answer"].strip())]
    return "\n\n".join(parts)


def _scores(answer: Mapping[str, Any]) -> str:
    figures = [
        f"{one.label.lower()} {text(answer[one.key])}" for one in metrics.MEASURES if answer[one.key] is not None
    ]
    return ", ".join([*figures, "ended" if answer["ended"] else "not ended"])
