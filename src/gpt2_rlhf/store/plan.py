"""Plan a run: which stages it has, what each builds on, and the hash that names each one's directory.

The hash covers a format number, the stage's settings, the base model, the data and the stages it builds on.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.store.files import content_sha256
from gpt2_rlhf.store.stage import Stage

FORMAT = 7  # raise it when the same settings come to mean another result

# Arguments of TRL's configs that cannot change the weights: what is logged, kept on disk or done by how many workers.
NOT_HASHED = frozenset(
    {
        "logging_dir",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "log_level",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataset_num_proc",
    }
)


@dataclass(frozen=True)
class Inputs:
    """What a run reads from outside, by content, as text that changes when the content does."""

    base_model: str  # models.model_files.identity
    rows: str  # rows.sources.fingerprint
    utility: str | None = None  # config.functions.fingerprint of data.utility
    reward_function: str | None = None  # and of ppo.reward.function
    launcher: str | None = None  # sha256 of launch.accelerate_config, which may set the precision


def plans(settings: Settings, inputs: Inputs, processes: int) -> tuple[dict[str, Stage], ...]:
    """Plan the stages of a run for each PPO seed; all stages but the last two are shared between the seeds."""
    return tuple(plan(settings, inputs, processes, seed) for seed in settings.ppo.seeds or [settings.seed])


def plan(settings: Settings, inputs: Inputs, processes: int, ppo_seed: int) -> dict[str, Stage]:
    """Plan the stages of a run with one PPO seed, in the order in which they are built.

    processes: data-parallel processes of the training stages; their number scales the batch and so the result.
    """
    base = {"model": inputs.base_model, "random": settings.model.random}
    trained = {"seed": settings.seed, "processes": processes, "launcher": inputs.launcher}
    measured = {"heldout_pairs": settings.evaluate.pairs}
    if settings.launch.sharded:  # rounds differently; a key that is there only then keeps the names of other stages
        trained["sharded"] = True
    judges = ("judge",) if settings.data.has_judge else ()
    needs: dict[str, tuple[str, ...]] = {
        "data": (),
        "sft": ("data",),
        "reward": ("data", "sft"),
        **dict.fromkeys(judges, ("data", "sft")),
        "ppo": ("data", "sft", "reward", *judges),
        "evaluate": ("data", "sft", "reward", *judges, "ppo"),
    }
    own: dict[str, dict[str, Any]] = {
        "data": {"data": _split_settings(settings), "source": inputs.rows, **base},
        "sft": {"sft": _hashed(settings.sft), **base, **measured, **trained},
        "reward": {"reward": _hashed(settings.reward), **measured, **trained},
        "judge": {"reward": _hashed(settings.reward), **measured, **trained, "seed": settings.seed + 1},
        "ppo": {
            "ppo": _ppo_settings(settings),
            "utility": inputs.utility if settings.ppo.heldout.best_by == "utility" else None,
            "reward_function": inputs.reward_function,
            **trained,
            "seed": ppo_seed,
        },
        "evaluate": {"evaluate": _evaluate_settings(settings), "utility": inputs.utility, **base},
    }
    stages: dict[str, Stage] = {}
    for name, builds_on in needs.items():
        hashed = {"format": FORMAT, **own[name], "needs": {n: stages[n].directory.name for n in builds_on}}
        directory = Path(settings.output_dir) / "stages" / f"{name}-{content_sha256(hashed)[:12]}"
        stages[name] = Stage(name, directory, hashed, {n: stages[n] for n in builds_on})
    return stages


def _split_settings(settings: Settings) -> dict[str, Any]:
    """Settings that change how rows are processed; the rows themselves are covered by `Inputs.rows`."""
    elsewhere = {"name", "revision", "path", "subsets", "utility"}
    return {k: v for k, v in dataclasses.asdict(settings.data).items() if k not in elsewhere}


def _ppo_settings(settings: Settings) -> dict[str, Any]:
    """PPO settings to hash, without `seeds`: each is its own stage."""
    return {key: value for key, value in _hashed(settings.ppo).items() if key != "seeds"}


def _evaluate_settings(settings: Settings) -> dict[str, Any]:
    """Settings of the evaluation; `toxicity` is there only if set, so that other stages keep their names."""
    return {key: value for key, value in dataclasses.asdict(settings.evaluate).items() if key != "toxicity" or value}


def _hashed(part: Any) -> dict[str, Any]:
    values = dataclasses.asdict(part)
    values["args"] = {k: v for k, v in values["args"].items() if k not in NOT_HASHED}
    return values
