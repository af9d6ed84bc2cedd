"""Tiny models, tokenizer and arguments for the PPO tests: an update takes a fraction of a second on one core."""

import functools
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig
from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer

from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.models import tokens
from gpt2_rlhf.ppo_trainer import PPOTrainer, heldout
from gpt2_rlhf.ppo_trainer.watch import Watch

EOS = "<|endoftext|>"
VOCABULARY = 400
EOS_ID = VOCABULARY - 1
POSITIONS = 64
RESPONSE = 6

_WORDS = "how do i the fix a my bike please open with water learn plant sleep oven human".split(" ")  # noqa: SIM905


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens whose last is EOS, as in GPT-2; padding is EOS on the right."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = [f"\n\nHuman: {a} {b} {c}?\n\nAssistant: {c}{b} {a}!" for a in _WORDS for b in _WORDS for c in _WORDS]
    bpe.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, unk_token=EOS)
    fast.pad_token = EOS
    assert len(fast) == VOCABULARY
    assert fast.eos_token_id == EOS_ID
    return fast


def padding_tokenizer():
    """Return the tokenizer that PPO gets: left padding with a token that no text produces."""
    return tokens.padding_copy(tokenizer(), "left")


PAD_ID = tokens.pad_id(padding_tokenizer())


def _shape(pad_token_id: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=pad_token_id,
        initializer_range=0.1,  # with the default a 64-wide model is nearly uniform, which hides bugs
    )


def policy(seed: int = 0) -> GPT2LMHeadModel:
    set_seed(seed)
    model = GPT2LMHeadModel(_shape(EOS_ID))
    model.generation_config.pad_token_id = EOS_ID
    return model


def scorer(seed: int) -> GPT2ForSequenceClassification:
    """A reward or value model with random weights."""
    set_seed(seed)
    shape = _shape(PAD_ID)
    shape.num_labels = 1
    return GPT2ForSequenceClassification(shape)


def always_says(model: GPT2LMHeadModel, token_id: int) -> GPT2LMHeadModel:
    """Return the policy with a probability of nearly 1 for one token after any text."""
    with torch.no_grad():
        model.transformer.ln_f.bias.add_(10 * torch.sign(model.transformer.wte.weight[token_id]))
        model.transformer.wte.weight[token_id] = torch.sign(model.transformer.wte.weight[token_id])
    return model


def often_stopping_policy(strength: float = 5) -> GPT2LMHeadModel:
    """Return a policy that stops with a probability of about 0.3 at each token, or more with more strength."""
    model = policy().eval()
    with torch.no_grad():
        ids = torch.tensor([prompt[-4:] for prompt in prompts()["input_ids"]])
        hidden = model.transformer(ids).last_hidden_state.mean((0, 1))
        model.transformer.wte.weight[EOS_ID] += hidden * (strength / hidden.norm() ** 2)
    return model


def prompts(count: int = 12) -> Dataset:
    """Prompts of different lengths."""
    texts = [f"\n\nHuman: {' '.join(_WORDS[i % 7 : i % 7 + 1 + i % 5])} {i}?\n\nAssistant:" for i in range(count)]
    return Dataset.from_list(tokens.encode_ppo(tokenizer(), [{"prompt": text} for text in texts]))


NO_LIMITS = Guard(enabled=True, max_kl_nats=1e9, min_eos_rate=0, min_distinct_2=0, max_length_ratio=1e9)


def watch(directory: Path, guard: Guard = NO_LIMITS) -> Watch:
    """Return a watch that measures the policy on two prompts; the judge's score is the length of the answer."""
    texts = ["\n\nHuman: how?\n\nAssistant:", "\n\nHuman: my bike please?\n\nAssistant:"]
    measure = functools.partial(
        heldout.measure,
        tokenizer=tokenizer(),
        prompts=texts,
        reward=heldout.by_model("reward", scorer(1), tokenizer(), 2),
        judge=heldout.by_function(lambda _, answers: [float(len(answer)) for answer in answers]),
        utility=None,
        seed=5,
        max_new_tokens=RESPONSE,
        temperature=1.0,
        batch_size=2,
    )
    return Watch(directory, texts, measure, "reward", guard)


def arguments(directory: Path, **changes: Any) -> PPOConfig:
    """PPO on a CPU: 4 prompts per update in 2 microbatches, 2 PPO epochs, 2 updates."""
    settings: dict[str, Any] = {
        "output_dir": str(directory),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 3,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 1,
        "num_ppo_epochs": 2,
        "total_episodes": 8,
        "local_rollout_forward_batch_size": 4,
        "num_sample_generations": 0,
        "response_length": RESPONSE,
        "temperature": 1.0,
        "stop_token": "eos",
        "missing_eos_penalty": 1.0,
    }
    with warnings.catch_warnings():
        # TRL's configs set a field that transformers has deprecated (trl/trainer/base_config.py)
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        return PPOConfig(**{**settings, **changes})


def trainer(
    kind: type[TrlPPOTrainer],
    args: PPOConfig,
    *,
    model: PreTrainedModel | None = None,
    processing_class: Any = None,
    train_dataset: Dataset | None = None,
    callbacks: list[TrainerCallback] | None = None,
    peft_config: Any = None,
    ref_model: PreTrainedModel | None = None,
    value_model: PreTrainedModel | None = None,
    **own: Any,
) -> TrlPPOTrainer:
    """Build a trainer of TRL or ours from the same tiny parts."""
    with warnings.catch_warnings():
        # TRL's wrapper reads a deprecated attribute of the policy; ours silences this itself
        if kind is TrlPPOTrainer:
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return kind(
            args=args,
            processing_class=padding_tokenizer() if processing_class is None else processing_class,
            model=policy() if model is None else model,
            ref_model=ref_model,
            reward_model=scorer(1),
            value_model=scorer(2) if value_model is None else value_model,
            train_dataset=prompts() if train_dataset is None else train_dataset,
            callbacks=callbacks,
            peft_config=peft_config,
            **own,
        )


def stock(args: PPOConfig, **parts: Any) -> TrlPPOTrainer:
    return trainer(TrlPPOTrainer, args, **parts)


def ours(args: PPOConfig, **parts: Any) -> PPOTrainer:
    built = trainer(PPOTrainer, args, **parts)
    assert isinstance(built, PPOTrainer)
    return built


class Interrupt(TrainerCallback):
    """Stops a run as the pipeline does on Ctrl-C: after the checkpoint of update `after`."""

    def __init__(self, after: int):
        self.after = after

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


def logged(run: TrlPPOTrainer, name: str) -> list[float]:
    """Return the values of one metric, one for each update."""
    return [entry[name] for entry in run.state.log_history]


def digest(module: torch.nn.Module) -> str:
    """Return the sha256 of all weights."""
    state = module.state_dict()
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()


def trained_digest(run: TrlPPOTrainer) -> str:
    """Return the sha256 of the policy and of the value model of a trainer, one after the other."""
    return digest(run.policy_model) + digest(run.value_model)


def gradient_of_one_step(
    directory: Path, rows: int, accumulation: int, **changes: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the gradient (float64, all weights) of one update with one step, and what it logs except times."""
    args = arguments(
        directory,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        num_ppo_epochs=1,
        total_episodes=8,
        max_grad_norm=0,
        optim="sgd",
        **changes,
    )
    run: Any = ours(args, model=often_stopping_policy())
    gradients: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        gradients.append(torch.cat([weights.grad.flatten().double() for weights in run.model.parameters()]))

    run.optimizer.optimizer.register_step_pre_hook(keep)
    run.train()
    assert len(gradients) == 1
    logged_once = run.state.log_history[0]
    return gradients[0], {
        name: v for name, v in logged_once.items() if not name.startswith("time/") and "_per_s" not in name
    }
