"""Run one side of a comparison of bench.py: stock TRL's trainer or ours, one update per request.

Reads "update" or "stop" from standard input, one word per line, and answers each with one line of JSON. A first line,
sent when the trainer is built, describes model and rows. Both sides use TRL's classes with the same arguments. Ours
adds what the pipeline adds (sft.py, reward.py), or is the repaired PPO.
"""

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig
from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.bench import Comparison, device
from gpt2_rlhf import data
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import loading, model_files, packing, tokens
from gpt2_rlhf.ppo_trainer import PPOTrainer, rollouts
from gpt2_rlhf.rows import sources

_SEED = 0
_ANSWER_TOKENS = (16, 128)  # of random rows
_GPU_BATCH = 4  # on a GPU, batches have this many times as many rows


class Turns(TrainerCallback):
    """Stop the trainer after each update until the next is requested, and answer with its seconds and tokens."""

    def __init__(self, requests: TextIO, answers: TextIO) -> None:
        self._requests = requests
        self._answers = answers
        self._began = (0.0, 0.0)
        self._tokens: list[torch.Tensor] = []  # on the device, which is not waited for during an update
        self._flops: FlopCounterMode | None = None  # until the end of the warm-up update
        self.flops_per_token: float | None = None

    def count(self, backbone: torch.nn.Module, counts_flops: bool) -> None:
        """Count the tokens of a model that reads each row once an update, and the FLOPs of the first update."""
        backbone.register_forward_pre_hook(
            lambda _backbone, _args, given: self._tokens.append(given["attention_mask"].sum()),
            with_kwargs=True,
            prepend=True,  # before ours, which leave out what the two texts of a pair share
        )
        self._flops = FlopCounterMode(display=False) if counts_flops else None

    def answer(self, content: dict[str, Any]) -> None:
        """Send one line."""
        print(json.dumps(content), file=self._answers, flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the request of the first update."""
        self._wait()
        if self._flops is not None:
            self._flops.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Send the seconds of the update and wait for the next request."""
        _finish_on_device()
        wall_s, cpu_s = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        tokens = sum(int(count) for count in self._tokens)
        if self._flops is not None:
            self._flops.__exit__(None, None, None)
            self.flops_per_token = self._flops.get_total_flops() / tokens
            self._flops = None
        self.answer({"wall_s": wall_s, "cpu_s": cpu_s, "tokens": tokens})
        self._wait()

    def _wait(self) -> None:
        if self._requests.readline().strip() != "update":
            raise _Stopped
        self._tokens.clear()
        _finish_on_device()
        self._began = (time.perf_counter(), time.process_time())


class _Stopped(Exception):
    """Raised when enough updates are done; stock PPO cannot be ended early in another way."""


def serve(task: dict[str, Any], requests: TextIO, answers: TextIO) -> None:
    """Build the trainer of the side and train as requested; the last answer is the peak memory and the losses."""
    turns = Turns(requests, answers)
    comparison = Comparison(**task["comparison"])
    with tempfile.TemporaryDirectory() as directory:
        try:
            tokenizer = tokens.load_tokenizer(_folder(comparison), None)
            rows = _rows(comparison, tokenizer, task["hh"])
            trainer = build(comparison, task["side"], rows, tokenizer, task["updates"] + 1, directory, turns)
        except UserError as error:
            turns.answer({"error": str(error)})
            return
        read_once = trainer.reward_model if isinstance(trainer, TrlPPOTrainer) else trainer.model
        turns.count(read_once.base_model, task["side"] == "ours")  # type: ignore[union-attr, arg-type]  # TRL's types
        turns.answer({"about": _about(trainer, rows)})
        try:
            trainer.train()
        except _Stopped:
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            end = {"peak_mib": _peak_mib(), "losses": losses, "flops_per_token": turns.flops_per_token}
            turns.answer(end)


def build(
    comparison: Comparison,
    side: str,
    rows: Sequence[dict[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    updates: int,
    directory: str,
    turns: TrainerCallback,
) -> Trainer:
    """Return the trainer of a side. rows: from `_rows`. Both sides draw their models with the same seed."""
    args = _arguments(comparison, updates, directory)
    dataset = Dataset.from_list(list(rows))
    if comparison.kind == "ppo":
        return _ppo(comparison, side, dataset, tokenizer, PPOConfig(**args), turns)
    is_sft = comparison.kind == "sft"
    padding = tokenizer if is_sft else tokens.padding_copy(tokenizer, "right")
    model = _policy(comparison, tokenizer) if is_sft else _scorer(comparison, padding, _SEED)
    if side == "ours":
        packing.use_fused_activations(model)
        packing.without_padding(model, max(len(ids) for row in rows for ids in row.values()))
    if is_sft:
        return SFTTrainer(
            model,
            SFTConfig(**args, max_length=None),
            train_dataset=dataset,
            processing_class=padding,
            callbacks=[turns],
        )
    return RewardTrainer(
        model, RewardConfig(**args, max_length=None), train_dataset=dataset, processing_class=padding, callbacks=[turns]
    )


def _ppo(
    comparison: Comparison,
    side: str,
    prompts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    turns: TrainerCallback,
) -> Trainer:
    padding = tokens.padding_copy(tokenizer, "left")
    kind = PPOTrainer if side == "ours" else TrlPPOTrainer
    trainer = kind(
        args=args,
        processing_class=padding,
        model=_policy(comparison, tokenizer),
        ref_model=_policy(comparison, tokenizer),
        reward_model=_scorer(comparison, padding, _SEED),
        value_model=_scorer(comparison, padding, _SEED),
        train_dataset=prompts,
        callbacks=[turns],
    )
    if side == "stock":
        # stock shuffles with the global generator, so its prompts would have other lengths than ours
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        assert trainer.args.num_total_batches is not None
        ids_of = prompts["input_ids"]
        trainer.dataloader = [
            trainer.data_collator(
                [{"input_ids": ids} for ids in rollouts.prompt_batch(ids_of, update, rows, args.seed)]
            )
            for update in range(trainer.args.num_total_batches)
        ]
    return trainer


def _arguments(comparison: Comparison, updates: int, directory: str) -> dict[str, Any]:
    """Return the arguments of quickstart with those of the comparison, for that many updates."""
    settings = compose.load([]).settings
    chosen = {"ppo": settings.ppo, "sft": settings.sft, "reward": settings.reward}[comparison.kind].args
    on_gpu = torch.cuda.is_available()
    args: dict[str, Any] = {
        **chosen,
        "activation_checkpointing": False,
        **comparison.args,
        "output_dir": directory,
        "seed": _SEED,
        "data_seed": _SEED,
        "bf16": device()[1] == "bfloat16",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
    }
    if on_gpu:
        args["per_device_train_batch_size"] *= _GPU_BATCH
    if comparison.kind != "ppo":
        return {**args, "max_steps": updates}
    if on_gpu:
        args["local_rollout_forward_batch_size"] *= _GPU_BATCH
    episodes = updates * args["per_device_train_batch_size"] * args["gradient_accumulation_steps"]
    own = {"eval_strategy": "no", "total_episodes": episodes, "stop_token": "eos", "num_sample_generations": 0}
    return {**args, **own}


def _folder(comparison: Comparison) -> str:
    return comparison.folder or str(model_files.EMBEDDED_DIR)


def _policy(comparison: Comparison, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if comparison.shape is None:
        return loading.load_policy(_folder(comparison))
    set_seed(_SEED)
    return GPT2LMHeadModel(_config(comparison.shape, tokenizer))


def _scorer(comparison: Comparison, padding: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    set_seed(seed)
    if comparison.shape is None:
        return loading.load_reward(_folder(comparison), tokens.pad_id(padding))
    shape = _config(comparison.shape, padding)
    shape.num_labels, shape.pad_token_id = 1, tokens.pad_id(padding)
    return GPT2ForSequenceClassification(shape)


def _config(shape: dict[str, int], tokenizer: PreTrainedTokenizerBase) -> GPT2Config:
    # no dropout: its masks, and so the losses, would differ between the sides
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    eos_token_id = tokens.eos_id(tokenizer)
    return GPT2Config.from_dict({**shape, **no_dropout, "bos_token_id": eos_token_id, "eos_token_id": eos_token_id})


def _rows(comparison: Comparison, tokenizer: PreTrainedTokenizerBase, hh: str | None) -> list[dict[str, list[int]]]:
    """Return rows as the pipeline gives them to the trainer of that kind."""
    if comparison.prompt_tokens is not None and not (comparison.reads_hh and hh is not None):
        assert comparison.shape is not None
        return _random_rows(comparison, tokenizer, comparison.shape["vocab_size"])
    source = ["data.train_pairs=1000", "data.test_pairs=1"]
    if comparison.prompt_tokens is not None:
        # the limits of quickstart are for 512 positions; the models that read these pairs have 1024 or more
        limits = ["data.max_prompt_tokens=512", "data.max_answer_tokens=256"]
        source = ["data=hh_rlhf", f"data.path={hh}", "data.train_pairs=null", *limits]
    settings = compose.load([*source, "data.disjoint=false"]).settings.data

    tables = data.prepare(settings, sources.read(settings), data.rules(tokenizer))[0]
    encode = {"ppo": tokens.encode_ppo, "sft": tokens.encode_sft, "reward": tokens.encode_reward}[comparison.kind]
    return encode(tokenizer, [asdict(pair) for pair in tables[comparison.kind]])


def _random_rows(
    comparison: Comparison, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> list[dict[str, list[int]]]:
    random = np.random.default_rng(_SEED)
    eos_token_id = tokens.eos_id(tokenizer)
    special = (eos_token_id, tokens.pad_id(tokens.padding_copy(tokenizer, "left")))
    ordinary = np.setdiff1d(np.arange(vocabulary), special)
    assert comparison.prompt_tokens is not None

    def text(least: int, most: int) -> list[int]:
        return random.choice(ordinary, random.integers(least, most + 1)).tolist()

    rows = []
    for _ in range(1000):
        prompt = text(*comparison.prompt_tokens)
        chosen, rejected = ([*text(*_ANSWER_TOKENS), eos_token_id] for _ in range(2))
        rows.append(
            {
                "ppo": {"input_ids": prompt},
                "sft": {"input_ids": prompt + chosen, "labels": [-100] * len(prompt) + chosen},
                "reward": {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected},
            }[comparison.kind]
        )
    return rows


def _about(trainer: Trainer, rows: Sequence[dict[str, list[int]]]) -> str:
    """Describe the sizes of model, rows and batch."""
    args: Any = trainer.args
    model = getattr(trainer, "policy_model", None) or trainer.model
    assert model is not None
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lengths = [len(ids) for row in rows for name, ids in row.items() if name != "labels"]
    low, median, high = np.percentile(lengths, [0, 50, 100])
    what = "prompts" if isinstance(trainer, TrlPPOTrainer) else "rows"
    text = (
        f"{millions:.1f} M parameters, {what} of {low:.0f} to {high:.0f} tokens (median {median:.0f}), "
        f"batches of {args.per_device_train_batch_size} x {args.gradient_accumulation_steps}"
    )
    if isinstance(trainer, TrlPPOTrainer):
        text += (
            f", answers of up to {args.response_length} tokens, {args.num_ppo_epochs} epochs of "
            f"{args.num_mini_batches} mini-batches"
        )
    return text


def _finish_on_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    own_output = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the trainers print their logs
    warnings.simplefilter("ignore")  # TRL's own warnings; the tests of the pipeline check ours
    serve(json.loads(sys.argv[1]), sys.stdin, own_output)
