"""Check before PPO trains that its reward model, SFT model and reference are fit for it; name the stage at fault."""

from collections.abc import Sequence

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.launch import world

_MIN_EOS_RATE = 0.1
_MAX_EMPTY_RATE = 0.75
# rounding stays below, also in bf16; a reference that is another model is orders of magnitude above
_MAX_KL_NATS = 0.05


def sft_fault(ended: int, empty: int, answers: int) -> str | None:
    """Return a fault if too few of the SFT model's answers `ended` with EOS, or nearly all are empty but for EOS."""
    if mostly_empty(empty, answers):
        return (
            f"sft: {empty} of {answers} answers of the SFT model are empty, so PPO cannot learn from them; check that "
            "no chosen answer is empty or starts with EOS, then train SFT again"
        )
    if wilson(ended, answers)["high"] >= _MIN_EOS_RATE:
        return None
    return (
        f"sft: {ended} of {answers} answers of the SFT model ended with EOS, so PPO cannot learn when to stop; train "
        "SFT longer (sft.args), or raise ppo.args.response_length"
    )


def mostly_empty(empty: int, answers: int) -> bool:
    """Return whether nearly all answers are empty, beyond chance."""
    return wilson(empty, answers)["low"] > _MAX_EMPTY_RATE


def reference_fault(kl_nats: float) -> str | None:
    """Return a fault if policy and reference differ before the first update, by the mean k3 KL of an answer."""
    if kl_nats <= _MAX_KL_NATS:
        return None
    return (
        f"ppo: the KL of the policy to its reference is {kl_nats:.3g} nats before the first update; expected 0: the "
        "reference is not the SFT model that the policy starts from; delete the sft and ppo stages and run them again"
    )


def pass_or_stop(faults: Sequence[str | None], force: bool) -> list[str]:
    """Print and return the faults that `force` ignores.

    Raises:
        UserError: the first fault, without `force`.
    """
    found = [fault for fault in faults if fault is not None]
    if found and not force:
        raise UserError(f"{found[0]}; or go on with force=true")
    for fault in found if world.rank() == 0 else []:
        print(f"  forced: {fault}", flush=True)
    return found
