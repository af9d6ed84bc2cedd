"""Turn prompts into answers with their log-probabilities, as a drop-in for the two functions TRL's PPO does this with.

TRL 1.12 samples under whatever the policy's own generation_config says (a repetition penalty there makes the stored
log-probabilities those of another distribution) and keeps the logits of all rollouts, rows x tokens x vocabulary
floats, alive through the update. Here the settings are PPO's alone, and only the sampled tokens' log-probabilities
are kept.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from trl.experimental.ppo import ppo_trainer as stock
from trl.trainer.utils import selective_log_softmax

# Large enough that exp() of it is 0 beside any real logit, finite so that 0 x logit in the entropy is 0 and not NaN.
NEVER = -1e4


@contextmanager
def stock_functions_replaced(**replacements: Callable[..., Any]) -> Iterator[None]:
    """Within the block, what TRL's PPO module looks up by these names is ours."""
    names: dict[str, Any] = stock.__dict__
    originals = {name: names[name] for name in replacements}
    names.update(replacements)
    try:
        yield
    finally:
        names.update(originals)


@contextmanager
def own_rollouts() -> Iterator[None]:
    """Within the block, TRL's PPO samples with `sample` and takes the log-probabilities from it as they are."""
    with stock_functions_replaced(batch_generation=sample, selective_log_softmax=_logprobs_or_done):
        yield


@contextmanager
def token_banned(token_id: int, *models: torch.nn.Module) -> Iterator[None]:
    """Within the block the models give `token_id` probability 0, in rollout, reference and update alike.

    PPO reads a sampled padding token as the end of the answer. Suppressing it in the rollouts alone would make the
    stored log-probabilities differ from those of the update, so it is taken out of the distribution everywhere.
    """

    def ban(_module: torch.nn.Module, _inputs: Any, logits: Tensor) -> None:
        # Behind autograd's back, without a copy: at probability 0 the gradient of this logit is 0 anyway.
        logits.detach()[..., token_id] = NEVER

    handles = [language_model(model).get_output_embeddings().register_forward_hook(ban) for model in models]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def sample(
    policy: PreTrainedModel | PeftModel,
    prompts: Tensor,
    rows_per_call: int,
    pad_token_id: int,
    generation_config: GenerationConfig,
) -> tuple[Tensor, Tensor]:
    """Prompts with sampled answers (rows, prompt + answer) and the answers' log-probabilities (rows, answer) in nats.

    Answers end with EOS or at `max_new_tokens`; what follows is padding, whose log-probabilities mean nothing.
    Has the signature of TRL's `batch_generation`, which returns logits in place of log-probabilities.
    """
    settings = copy.deepcopy(generation_config)
    settings.update(
        pad_token_id=pad_token_id,
        eos_token_id=language_model(policy).generation_config.eos_token_id,  # TRL has put the stop token there
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers, logprobs = [], []
    with _plain_generation_config(policy):
        for rows in prompts.split(rows_per_call):
            is_text = rows != pad_token_id
            output = policy.generate(
                input_ids=rows.masked_fill(~is_text, 0),  # type: ignore[arg-type]
                attention_mask=is_text,
                generation_config=settings,
            )
            answer = output.sequences[:, rows.shape[1] :]
            answers.append(answer)
            logprobs.append(
                torch.stack(
                    [
                        scores.gather(1, token).squeeze(1) - scores.logsumexp(1)
                        for scores, token in zip(output.scores, answer.T.unsqueeze(2), strict=True)
                    ],
                    1,
                )
            )
    answer_tokens = max(answer.shape[1] for answer in answers)
    padded_answers = torch.cat([_right_padded(answer, answer_tokens, pad_token_id) for answer in answers])
    return (
        torch.cat((prompts, padded_answers), 1),
        torch.cat([_right_padded(logprob, answer_tokens, 0) for logprob in logprobs]),
    )


def _right_padded(values: Tensor, columns: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, columns - values.shape[1]), value=fill)


def _logprobs_or_done(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probabilities of `token_ids`; `logits` from `sample` are that already, of the same shape."""
    return logits if logits.shape == token_ids.shape else selective_log_softmax(logits, token_ids)


@contextmanager
def _plain_generation_config(policy: PreTrainedModel | PeftModel) -> Iterator[None]:
    """transformers fills what a call's settings leave open from the model's own: within the block it has none."""
    model = language_model(policy)
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def language_model(model: torch.nn.Module) -> Any:
    """The model that has the embeddings and the generation_config, under an adapter or not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
