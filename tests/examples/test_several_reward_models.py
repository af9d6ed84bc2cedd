"""The combinations of examples/several_reward_models.py against scores of each model alone, worked out by hand."""

import json
from pathlib import Path

import pytest
import torch

from gpt2_rlhf.config import functions
from gpt2_rlhf.models import loading, tokens
from helpers.tiny import tiny_reward, tiny_tokenizer

REPOSITORY = Path(__file__).parents[2]
PROMPTS = ["\n\nHuman: chess?\n\nAssistant:", "\n\nHuman: Tell me about bread.\n\nAssistant:"]
ANSWERS = [" Play often.", " Mix flour and water, then bake it."]
MEAN_AND_STD = [(0.5, 2.0), (-1.0, 0.25)]  # of the members' scores, as their manifests say


def test_scores_of_several_models_are_standardised_and_then_combined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    eos = tokens.eos_id(tokenizer)
    expected = []
    for seed, (mean, std) in enumerate(MEAN_AND_STD):
        model, stage = tiny_reward(tokenizer, seed), tmp_path / "outputs" / "stages" / f"reward-{seed}"
        loading.save(model, tokenizer, stage / "model")
        (stage / "manifest.json").write_text(json.dumps({"metrics": {"score_mean": mean, "score_std": std}}))
        with torch.no_grad():
            ids = [
                torch.tensor([[*tokenizer(prompt)["input_ids"], *tokenizer(answer)["input_ids"], eos]])
                for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
            ]
            expected.append([(model(input_ids=one).logits.item() - mean) / std for one in ids])
    (tmp_path / "outputs" / "stages" / "reward-not-finished").mkdir()
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    combined = {
        name: functions.load_score_function(f"examples.several_reward_models:{name}") for name in ("mean", "lowest")
    }
    assert combined["mean"] is not None
    assert combined["lowest"] is not None
    of_answers = list(zip(*expected, strict=True))
    assert combined["mean"](PROMPTS, ANSWERS) == pytest.approx([sum(one) / 2 for one in of_answers], abs=1e-5)
    assert combined["lowest"](PROMPTS, ANSWERS) == pytest.approx([min(one) for one in of_answers], abs=1e-5)
