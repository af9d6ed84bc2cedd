"""Turn manifests into how a model was made: data, the stages with the arguments they were given, where and with what.

What a stage was given is read from its manifest, not from the settings of today: a stage may have been built before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2_rlhf.evidence.card_tables import markdown

Record = Mapping[str, Any]  # a stage's manifest

_ARGUMENTS = (  # of TRL's configs, in the order shown
    ("learning_rate", "learning rate"),
    ("lr_scheduler_type", "schedule"),
    ("warmup_steps", "warm-up steps"),
    ("weight_decay", "weight decay"),
    ("num_train_epochs", "epochs"),
    ("max_steps", "steps at most"),
    ("total_episodes", "episodes"),
    ("num_ppo_epochs", "epochs over each batch"),
    ("num_mini_batches", "minibatches"),
    ("kl_coef", "KL coefficient"),
    ("kl_estimator", "KL estimator"),
    ("cliprange", "clip range"),
    ("vf_coef", "value loss coefficient"),
    ("gamma", "gamma"),
    ("lam", "lambda"),
    ("response_length", "answer tokens at most"),
    ("temperature", "temperature"),
    ("missing_eos_penalty", "penalty without EOS"),
)
_TITLES = {"sft": "SFT", "reward": "Reward model", "judge": "Judge", "ppo": "PPO"}


def stages(records: Mapping[str, Record], names: Sequence[str]) -> str:
    """A row for each of the training stages: rows, arguments, optimiser steps and seconds."""
    rows = [
        [
            _TITLES[name],
            _trained_on(name, records[name]["metrics"]),
            ", ".join(_settings(name, records[name]["inputs"])),
            str(records[name]["metrics"]["updates" if name == "ppo" else "steps"]),
            f"{records[name]['wall_s']:.0f}",
        ]
        for name in names
        if name in records
    ]
    return markdown(["Stage", "Trained on", "Settings", "Steps", "Seconds"], rows)


def rows_read(report: Mapping[str, Any]) -> str:
    """How many rows of the source were read, dropped by reason, cut and kept. report: the data stage's metrics."""
    reasons = sorted({*report["train"]["dropped"], *report["test"]["dropped"]})
    sides = (report["train"], report["test"])
    rows = [
        ["read", *(str(side["read"]) for side in sides)],
        *([f"dropped: {why}", *(str(side["dropped"].get(why, 0)) for side in sides)] for why in reasons),
        ["kept", *(str(side["kept"]) for side in sides)],
        ["of these, with turns cut from the prompt", *(str(side["turns_cut"]) for side in sides)],
    ]
    return markdown(["Rows", "Training", "Test"], rows)


def shares(record: Record) -> str:
    """How the rows were divided, in a sentence. record: the data stage's manifest."""
    report = record["metrics"]
    parts = [f"{name} {one['pairs']} pairs of {one['prompts']} prompts" for name, one in report["tables"].items()]
    apart = "no prompt is in two of them" if record["inputs"]["data"]["disjoint"] else "the training stages share them"
    return (
        f"Divided into {', '.join(parts)}; {apart}. At most {report['max_prompt_tokens']} tokens of prompt and "
        f"{report['max_answer_tokens']} of answer."
    )


def guard(ppo: Record) -> str:
    """What watched PPO, whether it stopped it, and which policy was handed on."""
    metrics = ppo["metrics"]
    handed_on = f"The policy of update {metrics['kept_update']} of {metrics['updates']} was handed on."
    if metrics["stopped"] is not None:
        return f"The guard stopped PPO: {metrics['stopped']}. {handed_on}"
    if metrics["heldout"] is None or not ppo["inputs"]["ppo"]["guard"]["enabled"]:
        return f"No guard watched PPO. {handed_on}"
    unasked = "" if metrics["judge_fault"] is None else f" The judge was not asked: {metrics['judge_fault']}."
    prompts = metrics["heldout"]["prompts"]
    return f"The guard watched PPO on {prompts} withheld prompts and did not stop it. {handed_on}{unasked}"


def made(records: Mapping[str, Record], weights_of: str) -> str:
    """Where, when and with what the stages ran, and the digests of the weights of the stage `weights_of`.

    Stages may have been built apart, so each value is listed once for every one that occurs.
    """
    libraries = {name for record in records.values() for name in record["libraries"]}
    rows = [
        ["Finished", records["evaluate"]["finished_at"]],
        ["Seconds, all stages", f"{sum(record['wall_s'] for record in records.values()):.0f}"],
        ["Device", _each(record["device"] for record in records.values())],
        ["CPUs", _each(record["cpus"] for record in records.values())],
        ["Platform", _each(record["platform"] for record in records.values())],
        ["Processes", _each(records[name]["inputs"]["processes"] for name in _TITLES if name in records)],
        ["Seeds", ", ".join(f"{name} {record['seed']}" for name, record in records.items())],
        ["gpt2-rlhf at commit", _each(record["git_commit"] or "unknown" for record in records.values())],
        ["python", _each(record["python"] for record in records.values())],
        *([name, _each(record["libraries"][name] for record in records.values())] for name in sorted(libraries)),
        *([f"sha256 of {file}", digest] for file, digest in records[weights_of]["weights_sha256"].items()),
    ]
    return markdown(["", ""], rows)


def number(value: float | str) -> str:
    """A setting as a person writes it: 0.0003, 1, linear."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trained_on(name: str, metrics: Mapping[str, Any]) -> str:
    if name == "ppo":
        return f"its own answers to {metrics['prompts']} prompts"
    return f"{metrics['train_rows']} {'chosen answers' if name == 'sft' else 'pairs'}"


def _settings(name: str, inputs: Mapping[str, Any]) -> list[str]:
    part = inputs["reward" if name == "judge" else name]
    args = {key: value for key, value in part["args"].items() if value is not None}
    if args.get("max_steps", -1) > 0:  # transformers then ignores the epochs
        args.pop("num_train_epochs", None)
    device, accumulation, processes = (
        args["per_device_train_batch_size"],
        args["gradient_accumulation_steps"],
        inputs["processes"],
    )
    batch = f"batch {device} x {accumulation} accumulated x {processes} processes = {device * accumulation * processes}"
    peft = part["peft"]
    shown = [f"{label} {number(args[key])}" for key, label in _ARGUMENTS if key in args and args[key] != -1]
    adapter = f"LoRA rank {peft['r']}, alpha {peft['lora_alpha']}, merged" if peft["r"] else "all weights"
    return [*shown, batch, adapter, *(_reward_settings(part) if name == "ppo" else [])]


def _reward_settings(ppo: Mapping[str, Any]) -> list[str]:
    kl, reward = ppo["kl"], ppo["reward"]
    target = f"KL coefficient adapted to {number(kl['target_nats'])} nats over {kl['horizon_episodes']} episodes"
    return [
        *([target] if kl["target_nats"] is not None else []),
        *([f"reward by {reward['function']}"] if reward["function"] is not None else []),
        *(["reward normalised"] if reward["normalise"] else []),
        *([f"reward clipped at {number(reward['clip'])}"] if reward["clip"] is not None else []),
    ]


def _each(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
