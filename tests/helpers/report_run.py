"""A finished run in miniature, with texts that attack the page that shows them: manifests, logs, samples, summary."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.evidence import measured as heldout
from gpt2_rlhf.evidence.calibration import calibration, length_bias
from gpt2_rlhf.evidence.comparison import compare, shares
from gpt2_rlhf.evidence.intervals import Estimate, bootstrap_mean, wilson
from gpt2_rlhf.evidence.measured import Measured

HOSTILE = (
    "</script><script>document.title = 'hostile'</script>",
    "<img src=x onerror=\"document.title = 'hostile'\">",
    '"><svg onload="document.title = \'hostile\'">',
    "</p></article><style>body { display: none }</style>",
    "{{ 7 * 7 }} &lt;b&gt; & <b>bold</b>",
    "line\u2028separated\u2029text \u202ereversed",
    "bell \x07 and \x1b[2J",
    "averyveryverylongword" * 20,
)
PROMPTS = 14


def estimate(values: Any) -> Estimate:
    return bootstrap_mean(np.asarray(values, dtype=float))


def write(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the run's files; gives its manifests by stage, and its summary."""
    draws = np.random.default_rng(0)
    measured = {name: _measured(draws, gain) for name, gain in (("base", -1.0), ("sft", 0.0), ("ppo", 0.5))}
    measured["best_of_n"] = _measured(draws, 1.0)
    halves = np.arange(PROMPTS) < PROMPTS // 2
    compared = compare(measured, {HOSTILE[1]: halves, "single-turn": ~halves}, 1.5, 0)
    compared["chosen"] = shares(halves, None, 0)
    compared["models"]["best_of_n"]["kl_bound_nats"] = 0.636
    records = _records(draws, compared)
    for name in records:
        (run_dir / name).mkdir(parents=True)
        lines = [{"step": step, "loss": 1 / step, "accuracy": 0.6, "grad_norm": 1.0} for step in (1, 2, 3)]
        (run_dir / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for update in (0, 2):
        zeros = np.zeros(3)
        at = Measured(
            zeros + update,
            zeros + 1,
            None,
            zeros + 9,
            zeros == 0,
            zeros + 1,
            zeros,
            zeros + update / 2,
            zeros,
            update=update,
        )
        heldout.write(run_dir / "ppo" / "heldout", at, ["p"] * 3, [""] * 3)
    _write_samples(run_dir / "samples.jsonl", measured)
    return records, _summary(records)


def _measured(draws: np.random.Generator, gain: float) -> Measured:
    tokens = draws.integers(3, 40, PROMPTS)
    return Measured(
        reward=draws.normal(gain, 1, PROMPTS),
        judge_reward=draws.normal(gain, 1, PROMPTS),
        utility=draws.normal(gain, 1, PROMPTS),
        tokens=tokens,
        ended=draws.integers(0, 2, PROMPTS),
        distinct_2=draws.uniform(0.5, 1, PROMPTS),
        kl_k1=draws.normal(gain, 1, PROMPTS),
        chosen_nll_nats=draws.uniform(10, 20, PROMPTS),
        chosen_tokens=tokens,
        refused=tokens > 20,
        toxic=tokens % 2 == 0,
    )


def _reward_model(draws: np.random.Generator) -> dict[str, Any]:
    margins, extra_tokens = draws.normal(1, 1, 60), draws.integers(-5, 6, 60)
    longer = {"mean": 0.55, "low": 0.43, "high": 0.67, "n": 60}
    accuracy = wilson(float((margins > 0).sum()), 60)
    return {
        "accuracy": accuracy,
        "baselines": {"chance": 0.5, "longer_answer_wins": longer, "best_reachable": 0.84},
        "by_subset": {
            name: {"accuracy": {**accuracy, "n": 30}, "longer_answer_wins": {**longer, "n": 30}}
            for name in ("cost $a$b", "helpful")
        },
        "margin": estimate(margins),
        "calibration": calibration(margins, 0),
        "length_bias": length_bias(margins, extra_tokens, 0),
        "pairs": 60,
        "train_rows": 300,
        "steps": 3,
    }


def _records(draws: np.random.Generator, compared: dict[str, Any]) -> dict[str, Any]:
    side = {"read": 320, "dropped": {"identical answers": 20}, "kept": 300}
    point = {"update": 0, "reward": estimate(draws.normal(0, 1, 3)), "judge_reward": None, "utility": None}
    point |= {key: estimate(draws.normal(1, 0.1, 3)) for key in ("kl_nats", "answer_tokens", "eos_rate", "distinct_2")}
    metrics: dict[str, Any] = {
        "data": {
            "source": HOSTILE[0],
            "train": side,
            "test": {**side, "dropped": {}},
            "tables": {"sft": {"pairs": 100, "prompts": 90}, "test": {"pairs": 60, "prompts": 55}},
        },
        "sft": {
            "heldout_loss_before": estimate(draws.normal(3, 0.1, 9)),
            "heldout_loss_after": estimate(draws.normal(2, 0.1, 9)),
            "train_rows": 100,
            "steps": 3,
        },
        "reward": _reward_model(draws),
        "judge": _reward_model(draws),
        "ppo": {
            "prompts": 40,
            "episodes": 96,
            "updates": 3,
            "kept_update": 3,
            "best_update": 3,
            "stopped": None,
            "heldout": {"prompts": 3, "start": point, "kept": {**point, "update": 3}, "last": {**point, "update": 3}},
            "judge_fault": None,
            "forced": [],
        },
        "evaluate": {
            "prompts": PROMPTS,
            "seed": 3,
            "temperature": 0.7,
            "max_new_tokens": 48,
            "best_of": 4,
            **compared,
        },
    }
    return {
        name: {
            "stage": name,
            "directory": f"{name}-0123456789ab",
            "inputs": {"source": "sha256:abc", "model": "c5a9+None@None"},
            "seed": 4,
            "finished_at": "2026-11-25 00:00:00 UTC",
            "wall_s": 12.25,
            "work_s": 11.5,
            "peak_rss_mib": 512.4,
            "device": "cpu",
            "platform": "Linux",
            "cpus": 2,
            "python": "3.11.7",
            "libraries": {"trl": "1.12.0", "hydra-core": "1.3.8"},
            "git_commit": "b10826c",
            "weights_sha256": {} if name in ("data", "evaluate") else {"model.safetensors": "c796" * 16},
            "metrics": of_stage,
        }
        for name, of_stage in metrics.items()
    }


def _summary(records: dict[str, Any]) -> dict[str, Any]:
    models = records["evaluate"]["metrics"]["models"]
    over = {"mean": 0.5, "sd": 0.25, "min": 0.25, "max": 0.75, "n": 2}
    by_seed = [
        {"seed": seed, "kept_update": 3, "stopped": None, "collapsed": None, "reward": models["ppo"]["reward"]}
        for seed in (4, 5)
    ]
    return {
        "run": "0123456789ab",
        "command": "make pipeline seed=4",
        "seed": 4,
        "finished_at": "2026-11-25 00:00:00 UTC",
        "wall_s": 100.5,
        "work_s": 90.25,
        "stages": {},
        "sft": records["sft"]["metrics"],
        "reward_model": records["reward"]["metrics"],
        "judge": records["judge"]["metrics"],
        "ppo": records["ppo"]["metrics"],
        "evaluation": records["evaluate"]["metrics"],
        "seeds": {"by_seed": by_seed, "collapsed": [], "stopped": [], "over_seeds": {"reward": over, "utility": None}},
    }


def _write_samples(path: Path, measured: dict[str, Any]) -> None:
    """Two examples, then a sample for each prompt; the texts take turns."""
    places = [("example", 0), ("example", 1), *(("heldout", place) for place in range(PROMPTS))]
    with path.open("w", encoding="utf-8") as file:
        for group, place in places:
            text = HOSTILE[place % len(HOSTILE)]
            answers = {
                name: {
                    "answer": f" {text}",
                    "ended": bool(one.ended[place]),
                    "tokens": int(one.tokens[place]),
                    "reward": float(one.reward[place]),
                    "judge_reward": float(one.reward[place]),
                    "utility": None if group == "example" else float(one.utility[place]),
                    "refused": bool(one.refused[place]),
                    "toxic": bool(one.toxic[place]),
                }
                for name, one in measured.items()
            }
            prompt = f"\n\nHuman: {text}\n\nAssistant:"
            line = {"group": group, "prompt": prompt, "subset": None if group == "example" else HOSTILE[1]}
            file.write(json.dumps({**line, "answers": answers}, ensure_ascii=False) + "\n")
