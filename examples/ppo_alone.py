"""PPOTrainer without the pipeline: train a tiny random GPT-2 to say "good", stop it half-way, and resume it.

    python examples/ppo_alone.py [FOLDER]

The reward is a function of the text, so no reward model is needed; the script downloads nothing and takes about ten
seconds on one core. Checkpoints go to FOLDER, or to a temporary folder that is removed at the end.
"""

import hashlib
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    set_seed,
)

from gpt2_rlhf.ppo_trainer import PPOConfig, PPOTrainer

WORDS = ["the", "a", "cat", "dog", "bird", "food", "house", "is", "was", "looks", "sleeps", "good", "bad"]
EOS, PAD = "<eos>", "<pad>"
UPDATES, RESUME_FROM = 12, 6


def count_good(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Score each answer by how often it contains the word "good"."""
    return [float(answer.split().count("good")) for answer in answers]


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with a token for each word; PPO needs padding on the left that is not EOS."""
    vocabulary = {word: token_id for token_id, word in enumerate([*WORDS, EOS, PAD])}
    by_words = Tokenizer(WordLevel(vocabulary, unk_token=EOS))
    by_words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=by_words, eos_token=EOS, pad_token=PAD, padding_side="left")


def shape() -> GPT2Config:
    """Return the size of policy and value model, about 10,000 weights each."""
    eos_token_id = len(WORDS)
    size = GPT2Config(
        vocab_size=len(WORDS) + 2,
        n_positions=32,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
    )
    size.num_labels = 1  # the value model gives one number at each token
    return size


def trainer(folder: Path) -> PPOTrainer:
    """Build the trainer; every call gives the same weights."""
    words = tokenizer()
    prompts = [f"the {noun} {verb}" for noun in WORDS[2:7] for verb in WORDS[7:11]]
    set_seed(0)
    # TRL's PPOConfig sets a field that transformers has deprecated
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
    args = PPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        learning_rate=1e-2,
        per_device_train_batch_size=10,
        gradient_accumulation_steps=2,  # 10 x 2 = 20 answers per update
        total_episodes=20 * UPDATES,
        response_length=8,
        temperature=1.0,
        stop_token="eos",
        save_steps=RESUME_FROM,
        logging_steps=1,
    )
    built = PPOTrainer(
        args=args,
        processing_class=words,
        model=GPT2LMHeadModel(shape()),
        ref_model=None,  # a copy of the model
        reward_model=None,  # the score function takes its place
        train_dataset=Dataset.from_dict({"input_ids": words(prompts)["input_ids"]}),
        value_model=GPT2ForSequenceClassification(shape()),
        score_function=count_good,
    )
    built.remove_callback(PrinterCallback)  # prints every metric of every update
    return built


def digest(model: torch.nn.Module) -> str:
    """Return the sha256 of all weights."""
    sha = hashlib.sha256()
    for weights in model.state_dict().values():
        sha.update(weights.numpy().tobytes())
    return sha.hexdigest()


def main(folder: Path) -> None:
    """Train, resume from the middle, and compare."""
    whole = trainer(folder)
    whole.train()
    for entry in whole.state.log_history:
        print(f"update {entry['step']:2d}: {entry['objective/scores']:.2f} times good per answer")

    checkpoint = folder / f"checkpoint-{RESUME_FROM}"
    resumed = trainer(folder)
    resumed.train(str(checkpoint))
    same = digest(resumed.policy_model) == digest(whole.policy_model)
    print(f"resumed from {checkpoint.name}: the weights are {'the same' if same else 'different'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
