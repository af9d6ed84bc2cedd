"""Turn manifests into how a model was made: the data, the arguments of the stages, the machine and the libraries.

The arguments are those of the manifests, not of the settings: a stage may have been built by an earlier command.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2_rlhf.config import methods
from gpt2_rlhf.evidence.tables import Table, text_row

Record = Mapping[str, Any]  # a stage's manifest

_ARGUMENTS = {  # of TRL's configs, in the order shown
    "learning_rate": "learning rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up steps",
    "weight_decay": "weight decay",
    "num_train_epochs": "epochs",
    "max_steps": "steps at most",
    "total_episodes": "episodes",
    "num_ppo_epochs": "epochs over each batch",
    "num_mini_batches": "minibatches",
    "num_generations": "answers to a prompt",
    "kl_coef": "KL coefficient",
    "beta": "beta",
    "kl_estimator": "KL estimator",
    "cliprange": "clip range",
    "vf_coef": "value loss coefficient",
    "gamma": "gamma",
    "lam": "lambda",
    "response_length": "answer tokens at most",
    "max_completion_length": "answer tokens at most",
    "temperature": "temperature",
    "missing_eos_penalty": "penalty without EOS",
}
_TITLES = {"sft": "SFT", "reward": "Reward model", "judge": "Judge", **methods.LABELS}


def stages(records: Mapping[str, Record], names: Sequence[str]) -> Table:
    """Return a row for each of these training stages: rows, arguments, optimiser steps and seconds."""
    columns = {"rows": "Trained on", "settings": "Settings", "steps": "Steps", "wall_s": "Seconds"}
    rows = [
        text_row(
            _TITLES[name],
            _trained_on(name, records[name]["metrics"]),
            settings_text(name, {**records[name]["metrics"], **records[name]["inputs"]}),
            str(records[name]["metrics"]["updates" if name in methods.LABELS else "steps"]),
            f"{records[name]['wall_s']:.0f}",
        )
        for name in names
        if name in records
    ]
    return Table("trained", "Stage", columns, rows)


def details(records: Mapping[str, Record], base: str, data: str) -> Table:
    """Return data, architecture and the settings that decide most. base, data: as the card names them."""
    method = methods.of(records)
    label, names = methods.LABELS[method], {"sft": "SFT", "reward": "reward model", method: methods.LABELS[method]}
    args = {name: records[name]["inputs"][name]["args"] for name in names}
    coefficients = {"kl_coef": "KL coefficient", "beta": "KL coefficient (beta)", "cliprange": "Clip range"}
    rates = (f"{title} {_number(args[name]['learning_rate'])}" for name, title in names.items())
    used = "" if method == "dpo" else " with that reward model"
    rows = {
        "Base model": base,
        "Data": data,
        "Architecture": f"SFT and {label}: the base model's; reward model: the same with one score as its head",
        "Stages": f"SFT, then the reward model from it, then {label} from SFT{used}",
        "Learning rates": ", ".join(rates),
        **{title: _number(args[method][key]) for key, title in coefficients.items() if key in args[method]},
    }
    return Table("details", "Technical details", {"value": ""}, [text_row(label, text) for label, text in rows.items()])


def settings_text(name: str, inputs: Mapping[str, Any]) -> str:
    """Return the values in force of a training stage in one line.

    inputs: those of its manifest; `episodes_per_update` is PPO's batch where it was fitted to few prompts.
    """
    part = inputs["reward" if name == "judge" else name]
    args, peft = {key: value for key, value in part["args"].items() if value not in (None, -1)}, part["peft"]
    if args.get("max_steps", 0) > 0:  # transformers then ignores the epochs
        args.pop("num_train_epochs", None)
    device, accumulated = args["per_device_train_batch_size"], args["gradient_accumulation_steps"]
    product = device * accumulated * inputs["processes"]
    batch = f"batch {device} x {accumulated} accumulated x {inputs['processes']} processes = {product}"
    shown = [f"{label} {_number(args[key])}" for key, label in _ARGUMENTS.items() if key in args]
    adapter = f"LoRA rank {peft['r']}, alpha {peft['lora_alpha']}, merged" if peft["r"] else "all weights"
    if inputs.get("episodes_per_update", product) != product:
        batch = f"batch {inputs['episodes_per_update']} episodes, fitted to the data"
    shown += [batch, adapter]
    if "kl" in part and (target := part["kl"]["target_nats"]) is not None:
        shown.append(f"KL coefficient adapted to {_number(target)} nats over {part['kl']['horizon_episodes']} episodes")
    if "reward" in part:  # of PPO and RLOO
        function, clip = part["reward"]["function"], part["reward"]["clip"]
        shown += [f"reward by {function}"] if function is not None else []
        shown += ["reward normalised"] if part["reward"]["normalise"] else []
        shown += [f"reward clipped at {_number(clip)}"] if clip is not None else []
    return ", ".join(shown)


def made(records: Mapping[str, Record], weights_of: str) -> Table:
    """Return where, when and with which libraries the stages ran, and the digests of the weights of one of them.

    Stages may have been built by different commands, so each value that occurs is listed once.
    """
    every = list(records.values())
    libraries = sorted({name for record in every for name in record["libraries"]})
    rows = {
        "Finished": [records["evaluate"]["finished_at"]],
        "Seconds, all stages": [f"{sum(record['wall_s'] for record in every):.0f}"],
        "Device": [record["device"] for record in every],
        "CPUs": [record["cpus"] for record in every],
        "Platform": [record["platform"] for record in every],
        "Processes": [records[name]["inputs"]["processes"] for name in _TITLES if name in records],
        "Seeds": [f"{name} {record['seed']}" for name, record in records.items()],
        "gpt2-rlhf at commit": [record["git_commit"] or "unknown" for record in every],
        "python": [record["python"] for record in every],
        **{name: [record["libraries"][name] for record in every] for name in libraries},
        **{f"sha256 of {file}": [digest] for file, digest in records[weights_of]["weights_sha256"].items()},
    }
    shown = {label: dict.fromkeys(map(str, values)) for label, values in rows.items()}
    return Table("made", "", {"value": ""}, [text_row(label, ", ".join(values)) for label, values in shown.items()])


def _trained_on(name: str, metrics: Mapping[str, Any]) -> str:
    if name in ("ppo", "rloo"):
        return f"its own answers to {metrics['prompts']} prompts"
    return f"{metrics['train_rows']} {'chosen answers' if name == 'sft' else 'pairs'}"


def _number(value: float | str) -> str:
    """A setting as a person writes it: 0.0003, 1, linear."""
    return f"{value:g}" if isinstance(value, float) else str(value)
