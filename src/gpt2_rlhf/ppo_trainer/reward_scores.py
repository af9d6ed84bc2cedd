"""Score answers with a function instead of a reward model, and shape scores for PPO: normalise, then clip."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.functions import load_score_function
from gpt2_rlhf.config.settings import PpoReward
from gpt2_rlhf.models.tokens import encode_prompts, has_chat_template
from gpt2_rlhf.ppo_trainer import forward
from gpt2_rlhf.ppo_trainer.forward import Rows

# (prompts, answers) as text -> one score each
ScoreFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Shaping:
    """(score - mean) / std, then limited to [-clip, clip] unless clip is None."""

    mean: float = 0.0
    std: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UserError(
                f"ppo.reward.normalise: the reward model's scores have standard deviation {self.std:g}; it must be "
                "above 0: the reward model gives all answers one score; train it again, or set "
                "ppo.reward.normalise=false"
            )
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"ppo.reward.clip: {self.clip:g}; give a number above 0, or null for no clipping")

    def __call__(self, scores: Tensor) -> Tensor:
        """Return the shaped scores, of the same shape."""
        normalised = (scores - self.mean) / self.std
        return normalised if self.clip is None else normalised.clamp(-self.clip, self.clip)


def shaping(reward: PpoReward, report: Mapping[str, Any]) -> Shaping:
    """Return the shaping that the settings ask for; report: the metrics of the reward model's stage."""
    mean, std = (report["score_mean"], report["score_std"]) if reward.normalise else (0.0, 1.0)
    return Shaping(mean, std, reward.clip)


def scores_of(function: ScoreFunction, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
    """Return the function's scores, shape (answers,).

    Raises:
        UserError: the number of scores is not the number of answers.
    """
    scores = torch.tensor([float(score) for score in function(prompts, answers)])
    if len(scores) != len(answers):
        raise UserError(
            f"ppo.reward.function: returned {len(scores)} scores for {len(answers)} answers; expected one for each"
        )
    return scores


def scorer(
    function: ScoreFunction | None, reward_model: Any, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Rows], Tensor]:
    """Return a scorer of rows: `function`, which gets texts without padding, BOS and EOS, else the reward model."""
    if function is None:
        return partial(forward.answer_scores, reward_model)

    def score(rows: Rows) -> Tensor:
        prompts, answers = (rows.token_ids[:, : rows.prompt_tokens], rows.answers)
        scores = scores_of(function, texts(tokenizer, prompts.tolist()), texts(tokenizer, answers.tolist()))
        return scores.to(rows.token_ids.device)

    return score


def load(
    name: str | None, tokenizer: PreTrainedTokenizerBase, prompts: Callable[[], Sequence[str]]
) -> ScoreFunction | None:
    """Return the function `ppo.reward.function`, None without one; it gets prompts as transcripts.

    prompts: reads all that it may get, since one in a chat template cannot be turned back into its transcript.
    """
    function = load_score_function(name)
    if function is None or not has_chat_template(tokenizer):
        return function
    known = prompts()
    transcripts = dict(zip(texts(tokenizer, encode_prompts(tokenizer, known)), known, strict=True))
    return lambda given, answers: function([transcripts.get(prompt, prompt) for prompt in given], answers)


def texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[Sequence[int]]) -> list[str]:
    """Return rows of token ids as text, without padding, BOS and EOS."""
    left_out, decode = set(tokenizer.all_special_ids), cast("Callable[..., str]", tokenizer.decode)
    # skip_special_tokens would leave the padding in, which is an ordinary token of the vocabulary
    rows = [[token_id for token_id in row if token_id not in left_out] for row in token_ids]
    return [decode(row, clean_up_tokenization_spaces=False) for row in rows]
