"""Measure the policy of one update on prompts that PPO does not train on.

Every update gets the same prompts, seed and uniform draws, so differences between updates have less variance.
"""

from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.evidence.answers import finite_scores, refuse_not_finite, scored_sequences, utilities
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models import scoring, threads, tokens
from gpt2_rlhf.models.sampling import Answer, sample
from gpt2_rlhf.ppo_trainer import reward_scores
from gpt2_rlhf.ppo_trainer.reward_scores import ScoreFunction

# (prompts, their answers) -> float64 scores of shape (answers,)
Scorer = Callable[[Sequence[str], Sequence[Answer]], np.ndarray]


def by_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Scorer:
    """Return a scorer that uses the reward model of stage `name`; it raises a UserError for a score that is not finite.

    `tokenizer` is the saved one.
    """
    return lambda prompts, answers: finite_scores(
        "ppo.heldout", name, model, scored_sequences(tokenizer, prompts, answers), batch_size
    )


def by_function(function: ScoreFunction) -> Scorer:
    """Return a scorer that uses PPO's function; a wrong number of scores, or one not finite, raises a UserError."""

    def scores(prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
        texts = [answer.text for answer in answers]
        values = reward_scores.scores_of(function, prompts, texts).double().numpy()
        refuse_not_finite("ppo.reward.function", values, texts)
        return values

    return scores


def measure(
    update: int,
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    reward: Scorer,
    judge: Scorer | None,
    utility: Callable[[str, str], float] | None,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> tuple[Measured, list[Answer]]:
    """Sample one answer per prompt and measure it; no global random state is read or changed.

    reference: the SFT model; None means the policy with its LoRA adapter switched off. `tokenizer` is the saved one.
    `reward` and `judge` use other models, since they may run at the same time as these two.

    Raises:
        UserError: a reward or utility is not finite, or an answer does not fit the model.
    """
    answers = sample(
        policy,
        tokenizer,
        prompts,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
    )
    sampled_ids = [answer.sampled_ids(tokens.eos_id(tokenizer)) for answer in answers]
    prompt_ids = tokens.encode_prompts(tokenizer, prompts)
    (rewards, judge_rewards), kl = threads.both(
        lambda: (reward(prompts, answers), None if judge is None else judge(prompts, answers)),
        lambda: scoring.kl_by_row(policy, reference, prompt_ids, sampled_ids, temperature, batch_size),
        in_threads=True,
    )
    measured = Measured(
        update=update,
        reward=rewards,
        judge_reward=judge_rewards,
        utility=None if utility is None else utilities(utility, prompts, answers),
        kl_nats=kl.exact,
        kl_k1=kl.k1,
        kl_k3=kl.k3,
        tokens=np.array([len(answer.ids) for answer in answers]),
        ended=np.array([answer.ended for answer in answers]),
        distinct_2=np.array([scoring.distinct_2(answer.ids) for answer in answers]),
    )
    return measured, answers
