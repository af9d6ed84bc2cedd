import math

import pytest
import torch

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.functions import load_score_function
from gpt2_rlhf.config.settings import PpoKl
from gpt2_rlhf.models import tokens
from gpt2_rlhf.ppo_trainer import reward_scores
from gpt2_rlhf.ppo_trainer.reward_scores import Shaping
from helpers import ppo_tiny as tiny
from helpers import tokenizers_tiny


def test_scores_are_normalised_and_then_clipped():
    scores = torch.tensor([1.0, 3.0, 11.0, -9.0])
    assert Shaping(mean=1, std=2, clip=3)(scores).tolist() == [0, 1, 3, -3]  # (11 - 1) / 2 = 5 and (-9 - 1) / 2 = -5
    assert Shaping()(scores).tolist() == scores.tolist()


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_normalising_by_a_standard_deviation_that_is_not_positive_is_refused(std):
    with pytest.raises(UserError, match=r"ppo\.reward\.normalise"):
        Shaping(std=std)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(UserError, match=r"ppo\.reward\.clip"):
        Shaping(clip=clip)


def test_a_function_that_returns_another_number_of_scores_is_refused():
    with pytest.raises(UserError, match="returned 1 scores for 2 answers"):
        reward_scores.scores_of(lambda prompts, answers: [0.0], ["a", "b"], ["c", "d"])


def test_a_function_that_cannot_be_imported_is_refused():
    with pytest.raises(UserError, match=r"ppo\.reward\.function: 'math:none' cannot be imported"):
        load_score_function("math:none")
    assert load_score_function("math:dist") is math.dist
    assert load_score_function(None) is None


def test_with_a_chat_template_a_function_gets_the_prompts_as_transcripts(tmp_path, monkeypatch):
    tokenizer = tokenizers_tiny.loaded("gpt2", tmp_path, tokenizers_tiny.CHATML, "chat")
    prompts = [f"\n\nHuman: Hi {name}\n\nAssistant:" for name in ("Ann", "Bo")]
    read = reward_scores.texts(
        tokenizer, [row["input_ids"] for row in tokens.encode_ppo(tokenizer, [{"prompt": one} for one in prompts])]
    )
    given = []

    def function(prompts, answers):
        given.append(list(prompts))
        return [0.0 for _ in answers]

    monkeypatch.setattr(reward_scores, "load_score_function", lambda _name: function)
    score = reward_scores.load("mine:score", tokenizer, lambda: prompts)
    assert score is not None
    assert score(read[::-1], ["a", "b"]) == score(prompts, ["a", "b"]) == [0.0, 0.0]
    assert given == [prompts[::-1], prompts]
    assert not {*read} & {*prompts}


def trained(directory, **parts):
    trainer = tiny.ours(tiny.arguments(directory, total_episodes=8, missing_eos_penalty=None), **parts)
    trainer.train()
    return trainer


def test_a_function_replaces_the_reward_model_and_gets_text(tmp_path):
    pairs = []

    def length(prompts, answers):
        pairs.extend(zip(prompts, answers, strict=True))
        return [len(answer) for answer in answers]

    trainer = trained(tmp_path, score_function=length, shaping=Shaping(clip=5.0), model=tiny.often_stopping_policy())
    assert all(prompt.startswith("\n\nHuman: ") and prompt.endswith("\n\nAssistant:") for prompt, _ in pairs)
    assert not any("<|endoftext|>" in text or "\u00ff" in text for pair in pairs for text in pair)
    lengths = [len(answer) for _, answer in pairs]
    by_update = [lengths[:4], lengths[4:]]
    assert tiny.logged(trainer, "objective/unshaped_scores") == pytest.approx([sum(some) / 4 for some in by_update])
    clipped = [sum(min(n, 5) for n in some) / 4 for some in by_update]
    assert tiny.logged(trainer, "objective/scores") == pytest.approx(clipped)


def test_a_score_that_is_not_finite_stops_the_run_and_names_the_update(tmp_path):
    with pytest.raises(UserError, match="update 1: 4 of 4 scores are not finite"):
        trained(tmp_path, score_function=lambda prompts, answers: [math.nan] * len(answers))


def test_another_reference_stops_the_run_before_the_first_update_unless_forced(tmp_path):
    with pytest.raises(UserError, match="reference is not the SFT model"):
        trained(tmp_path, ref_model=tiny.policy(seed=7), force=False)
    trainer = trained(tmp_path, ref_model=tiny.policy(seed=7), force=True)
    assert trainer.state.global_step == 2
    assert len(trainer.forced) == 1


@pytest.mark.parametrize(
    ("token_id", "fault"), [(300, "0 of 40 answers of the SFT model ended"), (tiny.EOS_ID, "40 of 40 .* are empty")]
)
def test_a_policy_whose_answers_never_end_or_are_empty_stops_the_run_before_the_first_update(tmp_path, token_id, fault):
    model = tiny.always_says(tiny.policy(), token_id)
    args = tiny.arguments(tmp_path, per_device_train_batch_size=40, gradient_accumulation_steps=1, total_episodes=40)
    with pytest.raises(UserError, match=f"sft: {fault}"):
        tiny.ours(args, model=model, train_dataset=tiny.prompts(40), force=False).train()


def test_the_adaptive_coefficient_is_used_and_resumed(tmp_path):
    args = {"total_episodes": 16, "save_strategy": "steps", "save_steps": 2, "kl_coef": 0.1, "learning_rate": 0.0}
    kl = PpoKl(target_nats=1.0, horizon_episodes=8)
    whole = tiny.ours(tiny.arguments(tmp_path, **args), kl=kl)
    whole.train()
    # the KL stays 0: each update of 4 episodes lowers it by 0.2 x 4 / 8 = a tenth
    expected = [0.1, 0.09, 0.081, 0.0729]
    assert tiny.logged(whole, "objective/kl_coef") == pytest.approx(expected, rel=1e-5)
    resumed = tiny.ours(tiny.arguments(tmp_path, **args), kl=kl)
    resumed.train(str(tmp_path / "checkpoint-2"))
    assert tiny.logged(resumed, "objective/kl_coef") == pytest.approx(expected, rel=1e-5)
