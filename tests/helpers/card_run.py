"""The manifests and samples of a run that never was, with figures of every kind, each different from the others."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.config import compose, methods
from gpt2_rlhf.evidence import card
from gpt2_rlhf.evidence.calibration import calibration, length_bias
from gpt2_rlhf.evidence.comparison import BEST_OF_N, best_of_kl_bound_nats, compare, shares
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models import model_files
from gpt2_rlhf.store.stage import Stage

PROMPTS, PAIRS = 40, 50
MODEL_TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
SEEDS = {"judge": 4}  # of the others 3


def estimate(mean: float, n: int = 9) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.25, "high": mean + 0.5, "n": n}


def records(overrides: list[str] | None = None) -> dict[str, Any]:
    """Manifests by stage, of a run with these settings."""
    settings = compose.load(overrides or []).settings
    method = settings.method
    inputs: dict[str, Any] = {
        name: {"reward" if name == "judge" else name: dataclasses.asdict(settings.trained_by(name)), "processes": 2}
        for name in ("sft", "reward", "judge", method)
    }
    if method == "rloo":
        inputs["rloo"]["rloo"]["reward"] = dataclasses.asdict(settings.ppo.reward)
    inputs["data"] = {"data": {"disjoint": True}}
    metrics = {
        "data": _data(),
        "sft": {
            "train_rows": 31,
            "steps": 7,
            "heldout_loss_before": estimate(3.125),
            "heldout_loss_after": estimate(2.875),
        },
        "reward": _reward(seed=1),
        "judge": _reward(seed=2),
        method: {"prompts": 33, "episodes": 96, "updates": 12, "kept_update": 12, "stopped": None, "forced": []},
        "evaluate": evaluation(method),
    }
    metrics[method] |= {
        "ppo": {"best_update": 8, "heldout": {"prompts": 5}, "judge_fault": None},
        "rloo": {"generated_tokens": 500},
        "dpo": {"train_rows": 32},
    }[method]
    return {
        name: {
            "stage": name,
            "directory": f"{name}-0123456789ab",
            "inputs": inputs.get(name, {}),
            "seed": SEEDS.get(name, 3),
            "finished_at": "2031-02-03 10:00:00 UTC",
            "wall_s": 10.0,
            "work_s": 9.0,
            "peak_rss_mib": 500.0,
            "device": "cpu",
            "platform": "Linux",
            "cpus": 2,
            "python": "3.11.7",
            "libraries": {"trl": "1.12.0", "torch": "2.13.0"},
            "git_commit": "c0ffee",
            "weights_sha256": {"model.safetensors": f"digest-of-{name}"},
            "metrics": found,
        }
        for name, found in metrics.items()
    }


def evaluation(method: str = "ppo") -> dict[str, Any]:
    random = np.random.default_rng(0)

    def measured(shift: float, is_policy: bool = True) -> Measured:
        return Measured(
            reward=random.normal(shift, 1, PROMPTS),
            judge_reward=random.normal(shift + 0.3, 1, PROMPTS),
            utility=random.normal(shift + 0.7, 1, PROMPTS),
            tokens=random.integers(10, 16, PROMPTS),
            ended=random.random(PROMPTS) < 0.8,
            distinct_2=random.uniform(0.7, 1, PROMPTS),
            kl_k1=random.normal(2 + shift, 1, PROMPTS) if is_policy else None,
            chosen_nll_nats=random.uniform(20, 40, PROMPTS) if is_policy else None,
            chosen_tokens=random.integers(10, 20, PROMPTS) if is_policy else None,
            refused=random.random(PROMPTS) < 0.3,
        )

    models = {"base": measured(-1), "sft": measured(0), method: measured(1), BEST_OF_N: measured(0.5, is_policy=False)}
    half = np.arange(PROMPTS) < PROMPTS // 4
    compared = compare(models, {"help|ful": half, "harmless": ~half}, score_std=1.7, seed=0)
    compared["chosen"] = shares(random.random(PROMPTS) < 0.2, None, seed=0)
    for name, at in (("help|ful", half), ("harmless", ~half)):
        compared["by_subset"][name]["chosen"] = shares(random.random(int(at.sum())) < 0.2, None, seed=0)
    compared["models"][BEST_OF_N]["kl_bound_nats"] = best_of_kl_bound_nats(4)
    asked = {"prompts": PROMPTS, "seed": 0, "temperature": 0.7, "max_new_tokens": 48, "best_of": 4, "cost": {}}
    return json.loads(json.dumps({**asked, **compared}))


def samples(method: str = "ppo") -> list[dict[str, Any]]:
    """Two examples, and held-out prompts whose rewards change from SFT to policy by 0, -3, +2, -1, +1, in that order.

    Their utilities change by the opposite.
    """

    def line(group: str, prompt: str, change: float) -> dict[str, Any]:
        rewards = {"base": -0.5, "sft": 0.25, method: 0.25 + change}
        return {
            "group": group,
            "prompt": f"\n\nHuman: {prompt}\n\nAssistant:",
            "subset": None,
            "answers": {
                name: {
                    "answer": f" {name} on {prompt}\u2028",
                    "ended": name != "base",
                    "tokens": 4,
                    "reward": reward,
                    "judge_reward": None,
                    "utility": None if group == "example" else -reward,
                }
                for name, reward in rewards.items()
            },
        }

    examples = [line("example", f"example {number}", 0) for number in (1, 2)]
    return [*examples, *(line("heldout", f"change {change:+d}", change) for change in (0, -3, 2, -1, 1))]


def run(found: dict[str, Any] | None = None) -> card.CardSources:
    found = found or records()
    return card.CardSources("make pipeline seed=3", found, None, samples(methods.of(found)), [], "gpt2")


def stages(root: Path, found: dict[str, Any]) -> dict[str, Stage]:
    """The same on disk; each model has the bundled one's files and a small text in place of the weights."""
    made: dict[str, Stage] = {}
    for name, record in found.items():
        part = Stage(name, root / "stages" / record["directory"], {**record["inputs"], "seed": record["seed"]}, {})
        part.model_dir.mkdir(parents=True)
        (part.model_dir / "model.safetensors").write_text(f"model.safetensors of {name}")
        for file in MODEL_TEXTS:
            shutil.copyfile(model_files.EMBEDDED_DIR / file, part.model_dir / file)
        (part.directory / "manifest.json").write_text(json.dumps(record))
        made[name] = part
    lines = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in samples(methods.of(found)))
    (made["evaluate"].directory / "samples.jsonl").write_text(lines)
    return made


def _data() -> dict[str, Any]:
    side = {"read": 120, "dropped": {"empty answer": 3, "prompts differ": 2}, "kept": 115, "turns_cut": 4}
    return {
        "source": "embedded",
        "max_prompt_tokens": 256,
        "max_answer_tokens": 128,
        "train": side,
        "test": {**side, "read": 61, "dropped": {"prompts differ": 1}, "kept": 60},
        "tables": {"sft": {"pairs": 31, "prompts": 30}, "test": {"pairs": 60, "prompts": 59}},
        "subsets": {},
    }


def _reward(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    margins, longer = random.normal(0.8, 1, PAIRS), random.integers(-5, 9, PAIRS)

    def share(successes: int, n: int = PAIRS) -> dict[str, Any]:
        return {**wilson(successes, n)}

    return {
        "accuracy": share(37 + seed),
        "baselines": {"chance": 0.5, "longer_answer_wins": share(28 + seed), "best_reachable": 0.84},
        "by_subset": {"help|ful": {"accuracy": share(11, 15), "longer_answer_wins": share(9, 15)}},
        "calibration": calibration(margins, 0),
        "length_bias": length_bias(margins, longer, 0),
        "score_mean": -0.625,
        "score_std": 1.75,
        "pairs": PAIRS,
        "train_rows": 32,
        "steps": 8,
    }
