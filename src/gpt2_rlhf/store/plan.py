"""Plan a run: which stages it has, what each builds on, and the hash that names each one's directory.

The hash covers a format number, the stage's settings, the base model, the data and the stages it builds on.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import ppo_sizes
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.store.files import content_sha256
from gpt2_rlhf.store.stage import Stage

FORMAT = 7  # raise it when the same settings come to mean another result

# Arguments of TRL's configs that cannot change the weights: what is logged, kept on disk or done by how many workers.
NOT_HASHED = frozenset(
    {
        "logging_dir", "logging_first_step", "logging_steps", "logging_strategy", "log_level", "report_to", "run_name",
        "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "save_steps", "save_strategy",
        "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory", "dataset_num_proc",
    }
)  # fmt: skip
_ELSEWHERE = ("name", "revision", "path", "subsets", "utility")  # of the data: `Inputs` covers what they name
_IF_SET = ("template", "toxicity")  # not hashed while unset, so that stages keep the names they had before these


@dataclass(frozen=True)
class Inputs:
    """What a run reads from outside, by content, as text that changes when the content does."""

    base_model: str  # models.model_files.identity
    rows: str  # rows.sources.fingerprint
    utility: str | None = None  # config.functions.fingerprint of data.utility
    reward_function: str | None = None  # and of ppo.reward.function
    launcher: str | None = None  # sha256 of launch.accelerate_config, which may set the precision


def plans(settings: Settings, inputs: Inputs, processes: int, last: str) -> tuple[dict[str, Stage], ...]:
    """Plan the stage `last` and those it builds on, for each seed of the policy, in the order in which they are built.

    processes: data-parallel processes of the training stages; their number scales the batch and so the result.
    """
    whole = [_plan(settings, inputs, processes, seed) for seed in settings.ppo.seeds or [settings.seed]]
    kept = {last, *whole[0][last].needs}
    return tuple({name: stage for name, stage in plan.items() if name in kept} for plan in whole)


def _plan(settings: Settings, inputs: Inputs, processes: int, policy_seed: int) -> dict[str, Stage]:
    """Plan all stages of a run with one seed of the policy; the seeds share all stages but the last two."""
    base = {"model": inputs.base_model, "random": settings.model.random}
    trained = {"seed": settings.seed, "processes": processes, "launcher": inputs.launcher}
    measured = {"heldout_pairs": settings.evaluate.pairs}
    if settings.launch.sharded:  # rounds differently; not hashed while unset, as _IF_SET
        trained["sharded"] = True
    policy = {**trained, "seed": policy_seed}
    judges = ("judge",) if settings.data.has_judge else ()
    needs: dict[str, tuple[str, ...]] = {
        "data": (),
        "sft": ("data",),
        "reward": ("data", "sft"),
        **dict.fromkeys(judges, ("data", "sft")),
        settings.method: {
            "ppo": ("data", "sft", "reward", *judges),
            "rloo": ("data", "sft", "reward"),
            "dpo": ("data", "sft"),  # it learns from the pairs of the reward model, not from its scores
        }[settings.method],
        "evaluate": ("data", "sft", "reward", *judges, settings.method),
    }
    own: dict[str, dict[str, Any]] = {
        "data": {"data": _hashed(settings.data, _ELSEWHERE), "source": inputs.rows, **base},
        "sft": {"sft": _hashed(settings.sft), **base, **measured, **trained},
        "reward": {"reward": _hashed(settings.reward), **measured, **trained},
        "judge": {"reward": _hashed(settings.reward), **measured, **trained, "seed": settings.seed + 1},
        "ppo": {
            "ppo": _hashed(settings.ppo, ("seeds",)),  # each is a stage of its own
            "utility": inputs.utility if settings.ppo.heldout.best_by == "utility" else None,
            "reward_function": inputs.reward_function,
            **policy,
        },
        "rloo": {
            "rloo": {**_hashed(settings.rloo), "reward": dataclasses.asdict(settings.ppo.reward)},
            "withheld": ppo_sizes.set_in(settings.ppo),
            "reward_function": inputs.reward_function,
            **policy,
        },
        "dpo": {"dpo": _hashed(settings.dpo), **policy},
        "evaluate": {"evaluate": _hashed(settings.evaluate), "utility": inputs.utility, **base},
    }
    stages: dict[str, Stage] = {}
    for name, builds_on in needs.items():
        hashed = {"format": FORMAT, **own[name], "needs": {n: stages[n].directory.name for n in builds_on}}
        directory = Path(settings.output_dir) / "stages" / f"{name}-{content_sha256(hashed)[:12]}"
        stages[name] = Stage(name, directory, hashed, {n: stages[n] for n in builds_on})
    return stages


def _hashed(part: Any, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of a part of the run that can change its result."""
    values = dataclasses.asdict(part)
    if "args" in values:
        values["args"] = {key: value for key, value in values["args"].items() if key not in NOT_HASHED}
    return {key: value for key, value in values.items() if key not in left_out and (value or key not in _IF_SET)}
