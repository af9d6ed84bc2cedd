"""Fit the withheld prompts and the batches of PPO to the prompts there are, so that few pairs are enough."""

from dataclasses import dataclass

from gpt2_rlhf.config.settings import Ppo

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches")
_WITHHELD_SHARE = 4  # of few prompts at most a quarter is withheld from training


@dataclass(frozen=True)
class Sizes:
    """Numbers of prompts, and of episodes in one update; the batch arguments are those of one process."""

    withheld_prompts: int
    train_prompts: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_mini_batches: int
    episodes_per_update: int  # of all processes

    @property
    def batch_arguments(self) -> dict[str, int]:
        """The fields of PPOConfig."""
        return {name: getattr(self, name) for name in _BATCH}


def set_in(ppo: Ppo) -> list[int]:
    """Return all that `fit` reads of the settings: the withheld prompts, then the batch arguments."""
    return [ppo.withheld_prompts, *(int(ppo.args[name]) for name in _BATCH)]


def fit(ppo: Ppo, prompts: int, processes: int) -> Sizes:
    """Return the sizes that are set, or smaller ones if the prompts do not fill one batch.

    First the withheld prompts shrink to a quarter of the prompts, then the accumulated batches become fewer, then the
    batch of a device becomes smaller. Sizes that no reduction can fit stay as set, and checks.check refuses them.
    """
    withheld, device, accumulated, parts = set_in(ppo)
    if prompts - withheld < device * accumulated * processes:
        withheld = min(withheld, prompts // _WITHHELD_SHARE)
    rows = (prompts - withheld) // processes
    if rows < device * accumulated:
        choices = [
            *((device, fewer, parts) for fewer in range(accumulated, 0, -1)),
            *((smaller, 1, fewer) for fewer in (parts, 1) for smaller in range(device, 1, -1)),
        ]
        fitting = (one for one in choices if one[0] * one[1] <= rows and one[0] * one[1] % one[2] == 0)
        device, accumulated, parts = next(fitting, (device, accumulated, parts))
    episodes = device * accumulated * processes
    return Sizes(withheld, prompts - withheld, device, accumulated, parts, episodes)


def change(ppo: Ppo, sizes: Sizes, processes: int) -> str | None:
    """Return one line on what was reduced, or None."""
    rows_set = ppo.args["per_device_train_batch_size"] * ppo.args["gradient_accumulation_steps"] * processes
    reduced = [
        f"{count} {what} ({count_set} set)"
        for count, count_set, what in (
            (sizes.withheld_prompts, ppo.withheld_prompts, "withheld for measuring"),
            (sizes.episodes_per_update, rows_set, "episodes an update"),
            (sizes.num_mini_batches, ppo.args["num_mini_batches"], "mini-batches"),
        )
        if count != count_set
    ]
    prompts = sizes.withheld_prompts + sizes.train_prompts
    return f"ppo: sizes fitted to {prompts} prompts: {', '.join(reduced)}" if reduced else None
