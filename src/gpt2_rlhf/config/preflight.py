"""Find every fault that can be known before training, in the order in which it costs least to find.

Nothing of ours imports torch for this: a wrong setting, a missing file or an unreachable Hub shows within seconds.
"""

from collections.abc import Iterator

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings

_SPLITS = ("sft", "reward", "judge", "ppo")


def check(settings: Settings) -> None:
    """Refuse values that no run could use.

    Raises:
        UserError: the first fault found.
    """
    for fault in _range_faults(settings):
        raise UserError(fault)


def _range_faults(settings: Settings) -> Iterator[str]:
    data, evaluate, args = settings.data, settings.evaluate, settings.ppo.args
    if sorted(data.shares) != sorted(_SPLITS):
        yield f"data.shares: given for {sorted(data.shares)}; wanted shares for sft, reward, judge and ppo"
    needed = [share for name, share in data.shares.items() if name != "judge" or share < 0]
    if min(needed) <= 0 or sum(data.shares.values()) > 1 + 1e-9:
        yield f"data.shares: {data.shares}; wanted shares above 0 (for judge also 0) that sum to at most 1"
    positive = {
        "data.train_pairs": data.train_pairs,
        "data.test_pairs": data.test_pairs,
        "data.max_prompt_tokens": data.max_prompt_tokens,
        "data.max_answer_tokens": data.max_answer_tokens,
        "evaluate.prompts": evaluate.prompts,
        "evaluate.batch_size": evaluate.batch_size,
        "evaluate.max_new_tokens": evaluate.max_new_tokens,
        "evaluate.temperature": evaluate.temperature,
        "evaluate.best_of": evaluate.best_of,
        "launch.processes": settings.launch.processes,
        "ppo.args.response_length": args["response_length"],
        "ppo.args.total_episodes": args.get("total_episodes"),
        "ppo.args.temperature": args["temperature"],
        "ppo.args.num_ppo_epochs": args["num_ppo_epochs"],
        "ppo.args.num_mini_batches": args["num_mini_batches"],
        "ppo.kl.target_nats": settings.ppo.kl.target_nats,
        "ppo.kl.horizon_episodes": settings.ppo.kl.horizon_episodes,
        "ppo.reward.clip": settings.ppo.reward.clip,
        "ppo.heldout.prompts": settings.ppo.heldout.prompts,
        "ppo.args.eval_steps": args["eval_steps"],
    }
    trained = {"sft": settings.sft, "reward": settings.reward, "ppo": settings.ppo}
    for key, part in trained.items():
        for name in ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"):
            positive[f"{key}.args.{name}"] = part.args.get(name)
    for key, value in positive.items():
        if value is not None and value <= 0:
            yield f"{key}: {value}; wanted a number above 0"
    if not 0 <= settings.seed < 2**32:
        yield f"seed: {settings.seed}; wanted a whole number from 0 to 4294967295"
    if settings.ppo.reward.function is not None and settings.ppo.reward.normalise:
        yield (
            "ppo.reward.normalise: it takes the mean and spread of the reward model's scores, and ppo.reward.function "
            "gives others; set it to false"
        )
    yield from _heldout_faults(settings)
    for key, part in trained.items():
        if part.peft.r < 0:
            yield f"{key}.peft.r: {part.peft.r}; wanted 0 to train all weights, or a LoRA rank such as 8"


def _heldout_faults(settings: Settings) -> Iterator[str]:
    heldout, guard, seeds = settings.ppo.heldout, settings.ppo.guard, settings.ppo.seeds
    if heldout.best_by not in (None, "reward", "judge", "utility"):
        yield f"ppo.heldout.best_by: {heldout.best_by!r}; wanted reward, judge, utility or null"
    if heldout.hand_on not in ("last", "best"):
        yield f"ppo.heldout.hand_on: {heldout.hand_on!r}; wanted last or best"
    if settings.ppo.args["eval_strategy"] == "no" and heldout.hand_on == "best":
        yield "ppo.heldout.hand_on: best, but with ppo.args.eval_strategy=no nothing is measured; set either"
    if heldout.best_by == "judge" and not settings.data.has_judge:
        yield "ppo.heldout.best_by: judge, but no judge is trained; set data.shares.judge above 0"
    if heldout.best_by == "utility" and settings.data.utility is None:
        yield "ppo.heldout.best_by: utility, but it is unknown for these data; set data.utility"
    if guard.max_kl_nats <= 0 or guard.max_length_ratio <= 1:
        yield "ppo.guard: wanted max_kl_nats above 0 and max_length_ratio above 1"
    if not (0 <= guard.min_eos_rate <= 1 and 0 <= guard.min_distinct_2 <= 1):
        yield "ppo.guard: wanted min_eos_rate and min_distinct_2 from 0 to 1"
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
        yield f"ppo.seeds: {seeds}; wanted different whole numbers of 0 or more, or null"


def check_lengths(settings: Settings, positions: int) -> None:
    """Refuse lengths that a model with so many positions cannot read.

    Raises:
        UserError: a prompt and an answer together may take more.
    """
    prompt, answer = settings.data.max_prompt_tokens, settings.data.max_answer_tokens
    longest = {
        "data.max_answer_tokens": answer + 1,  # and EOS
        "ppo.args.response_length": settings.ppo.args["response_length"],
        "evaluate.max_new_tokens": settings.evaluate.max_new_tokens,
    }
    for key, tokens in longest.items():
        if prompt + tokens > positions:
            raise UserError(
                f"{key}: {prompt} tokens of prompt (data.max_prompt_tokens) and {tokens} of answer make "
                f"{prompt + tokens}, but the model has {positions} positions; lower either"
            )
