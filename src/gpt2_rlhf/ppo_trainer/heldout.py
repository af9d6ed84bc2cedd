"""Turn the policy of one update into figures on prompts that PPO never trains on.

The same prompts, seed and draws at every update, so that two updates differ by their policies and not by luck. The
files that ppo_measured keeps are the history: after a resume it is read back from them, to the bit.
"""

from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models import scoring, tokens
from gpt2_rlhf.models.sampling import Answer, sample
from gpt2_rlhf.ppo_trainer import reward_scores
from gpt2_rlhf.ppo_trainer.reward_scores import ScoreFunction

# (prompts, their answers) -> float64 scores of shape (answers,)
Scorer = Callable[[Sequence[str], Sequence[Answer]], np.ndarray]


def by_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Scorer:
    """Scores by a reward model, on its device; `name` is its stage, "reward" or "judge". `tokenizer` is the saved one.

    Raises, when called:
        UserError: a score is not finite.
    """
    pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))

    def scores(prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
        prompt_ids = _prompt_ids(tokenizer, prompts)
        eos = tokens.eos_id(tokenizer)
        sequences = [[*ids, *answer.ids, eos] for ids, answer in zip(prompt_ids, answers, strict=True)]
        values = scoring.score(model, pad_token_id, sequences, batch_size)
        if not np.isfinite(values).all():
            raise UserError(
                f"ppo.heldout: the {name} model gives held-out answers scores that are not finite; its training "
                "diverged: lower reward.args.learning_rate"
            )
        return values

    return scores


def by_function(function: ScoreFunction) -> Scorer:
    """Scores by the function that PPO maximises in a reward model's place.

    Raises, when called:
        UserError: it gives another number of scores, or one that is not finite.
    """

    def scores(prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
        texts = [answer.text for answer in answers]
        values = reward_scores.scores_of(function, prompts, texts).double().numpy()
        _check_finite("ppo.reward.function", values, texts)
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

    reference: the SFT model; None where it is the policy with its LoRA adapter switched off. `tokenizer` is the
    saved one.

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
    eos = tokens.eos_id(tokenizer)
    sampled = [[*answer.ids, eos] if answer.ended else answer.ids for answer in answers]
    kl = scoring.kl_by_row(policy, reference, _prompt_ids(tokenizer, prompts), sampled, temperature, batch_size)
    measured = Measured(
        update=update,
        rewards=reward(prompts, answers),
        judge_rewards=None if judge is None else judge(prompts, answers),
        utilities=None if utility is None else _utilities(utility, prompts, answers),
        kl_nats=kl.exact,
        kl_k1=kl.k1,
        kl_k3=kl.k3,
        answer_tokens=np.array([len(answer.ids) for answer in answers]),
        ended=np.array([answer.ended for answer in answers]),
        distinct_2=np.array([scoring.distinct_2(answer.ids) for answer in answers]),
    )
    return measured, answers


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    return [tokens.encode_ppo(tokenizer, {"prompt": prompt})["input_ids"] for prompt in prompts]


def _utilities(utility: Callable[[str, str], float], prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
    values = np.array([float(utility(prompt, answer.text)) for prompt, answer in zip(prompts, answers, strict=True)])
    _check_finite("data.utility", values, [answer.text for answer in answers])
    return values


def _check_finite(key: str, values: np.ndarray, texts: Sequence[str]) -> None:
    if not np.isfinite(values).all():
        bad = texts[int(np.argmin(np.isfinite(values)))]
        raise UserError(f"{key}: it gave no finite number for the answer {bad[:60]!r}; mend the function")
