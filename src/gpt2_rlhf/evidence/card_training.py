"""Turn manifests into how a model was made: the data, the arguments of the stages, the machine and the libraries.

The arguments are those of the manifests, not of the settings: a stage may have been built by an earlier command.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2_rlhf.evidence.tables import Cell, Row, Table

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


def stages(records: Mapping[str, Record], names: Sequence[str]) -> Table:
    """Return a row for each of these training stages: rows, arguments, optimiser steps and seconds."""
    columns = {"rows": "Trained on", "settings": "Settings", "steps": "Steps", "wall_s": "Seconds"}
    rows = [
        _row(
            _TITLES[name],
            _trained_on(name, records[name]["metrics"]),
            ", ".join(_settings(name, records[name]["inputs"])),
            str(records[name]["metrics"]["updates" if name == "ppo" else "steps"]),
            f"{records[name]['wall_s']:.0f}",
        )
        for name in names
        if name in records
    ]
    return Table("trained", "Stage", columns, rows)


def shares(record: Record) -> str:
    """Return how the rows were divided among the stages. record: the data stage's manifest."""
    report = record["metrics"]
    parts = [f"{name} {one['pairs']} pairs of {one['prompts']} prompts" for name, one in report["tables"].items()]
    apart = "no prompt is in two of them" if record["inputs"]["data"]["disjoint"] else "the training stages share them"
    return (
        f"Divided into {', '.join(parts)}; {apart}. At most {report['max_prompt_tokens']} tokens of prompt and "
        f"{report['max_answer_tokens']} of answer."
    )


def guard(ppo: Record) -> str:
    """Return whether a guard watched PPO, whether it stopped it, and which policy was handed on."""
    metrics = ppo["metrics"]
    handed_on = f"The policy of update {metrics['kept_update']} of {metrics['updates']} was handed on."
    if metrics["stopped"] is not None:
        return f"The guard stopped PPO: {metrics['stopped']}. {handed_on}"
    if metrics["heldout"] is None or not ppo["inputs"]["ppo"]["guard"]["enabled"]:
        return f"No guard watched PPO. {handed_on}"
    judge = "" if metrics["judge_fault"] is None else f" The judge scored nothing: {metrics['judge_fault']}."
    prompts = metrics["heldout"]["prompts"]
    return f"The guard watched PPO on {prompts} withheld prompts and did not stop it. {handed_on}{judge}"


def made(records: Mapping[str, Record], weights_of: str) -> Table:
    """Return where, when and with which libraries the stages ran, and the digests of the weights of one of them.

    Stages may have been built by different commands, so each value that occurs is listed once.
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
    return Table("made", "", {"value": ""}, [_row(label, value) for label, value in rows])


def number(value: float | str) -> str:
    """Return a setting as a person writes it: 0.0003, 1, linear."""
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


def _row(label: str, *texts: str) -> Row:
    return Row(label, [Cell(text) for text in texts])


def _each(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
