"""Asking several models, and what becomes of a preference."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Tokenizer

from gpt2_rlhf import data
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import sampling, scoring, tokens
from gpt2_rlhf.models.chat_models import Models
from gpt2_rlhf.rows import feedback, sources
from gpt2_rlhf.rows.cleaning import Rules
from gpt2_rlhf.rows.feedback import Conversation
from helpers import tokenizers_tiny
from helpers.tiny import POSITIONS, eos_prone, fixed_next_token, tiny_reward, tiny_tokenizer

TOKENS = 12


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer: GPT2Tokenizer) -> Models:
    policies = {name: eos_prone(tokenizer, seed, 2.5) for seed, name in enumerate(("base", "sft", "ppo"))}
    scorers = {"reward": tiny_reward(tokenizer, 5), "judge": tiny_reward(tokenizer, 6)}
    return Models(policies, scorers, tokenizer, temperature=0.8, max_new_tokens=TOKENS)


def saying(tokenizer: GPT2Tokenizer, prompt: str = "\n\nHuman: Hi?\n\nAssistant:", **texts: str) -> Conversation:
    """A conversation whose models all answered the prompt with these texts."""
    replies = {name: feedback.Reply(prompt, sampling.Answer(text, [], True), True, {}) for name, text in texts.items()}
    models = Models(dict.fromkeys(texts, fixed_next_token(tokenizer, {1: 1.0})), {}, tokenizer, 1.0, TOKENS)
    return Conversation(models, 0, 1, replies=replies)


def ask(conversation: Conversation, question: str) -> Conversation:
    *_, answered = feedback.ask(conversation, question)
    return answered


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def count_letters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def test_every_model_gives_the_answer_of_the_evaluation_with_the_same_seed_and_its_scores(
    models: Models, tokenizer: GPT2Tokenizer
) -> None:
    answered = ask(Conversation(models, 7, 1), " Tell me about the sea. ")
    prompt = "\n\nHuman: Tell me about the sea.\n\nAssistant:"
    pad, eos = tokens.pad_id(tokens.padding_copy(tokenizer, "right")), tokens.eos_id(tokenizer)
    assert list(answered.replies) == ["base", "sft", "ppo"]
    for name, reply in answered.replies.items():
        given: Any = {"seed": 7, "max_new_tokens": TOKENS, "temperature": 0.8, "batch_size": 1}
        (expected,) = sampling.sample(models.policies[name], tokenizer, [prompt], **given)
        assert reply.answer == expected
        read = [[*tokens.encode_prompts(tokenizer, [prompt])[0], *expected.ids, eos]]
        for scorer, score in reply.scores.items():
            (expected_score,) = scoring.score(models.scorers[scorer], pad, read, 1)
            assert score == pytest.approx(expected_score, abs=1e-5)
    assert set(answered.replies["ppo"].scores) == {"reward", "judge"}


def test_answers_grow_token_by_token_and_get_their_scores_when_they_are_complete(models: Models) -> None:
    steps = list(feedback.ask(Conversation(models, 7, 1), "Hi?"))
    for name, last in steps[-1].replies.items():
        lengths = [len(step.replies[name].answer.ids) for step in steps]
        assert lengths == sorted(lengths)
        assert {*range(1, lengths[-1] + 1)} <= {*lengths}
        assert all(bool(step.replies[name].scores) == step.replies[name].is_complete for step in steps)
        assert last.figures.startswith(f"reward {last.scores['reward']:.2f}, judge {last.scores['judge']:.2f}, ")
        assert last.figures.endswith("tokens, ended" if last.answer.ended else "tokens, cut at the limit")


def test_best_of_n_is_the_sft_answer_with_the_highest_reward_and_the_first_draw_is_that_of_sft(
    models: Models,
) -> None:
    answered = ask(Conversation(models, 3, 5), "Hi?")
    draws = torch.rand(5, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    prompt = "\n\nHuman: Hi?\n\nAssistant:"
    *_, every = sampling.stream(models.policies["sft"], models.tokenizer, prompt, draws, 0.8)
    rewards = [feedback._best(models, prompt, [one]).scores["reward"] for one in every]
    assert answered.replies["sft"].answer == every[0]
    best = answered.replies["best of 5 sft"]
    assert best.answer == every[rewards.index(max(rewards))]
    assert best.scores["reward"] == pytest.approx(max(rewards), abs=1e-5)


def test_without_a_seed_each_question_has_random_numbers_of_its_own_and_names_their_seed(models: Models) -> None:
    once, again = (ask(Conversation(models, None, 1), "Hi?") for _ in range(2))
    assert once.drawn_with != again.drawn_with
    assert once.replies == ask(Conversation(models, once.drawn_with, 1), "Hi?").replies


def test_with_a_seed_turns_differ_and_the_whole_conversation_repeats(models: Models) -> None:
    def talk() -> list[Conversation]:
        first = ask(Conversation(models, 4, 1), "Hi?")
        return [first, ask(first.continued(), "Hi?")]

    first, second = talk()
    assert (first.drawn_with, second.drawn_with) == (4, 5)
    assert talk() == [first, second]


def test_each_model_continues_its_own_conversation(models: Models) -> None:
    first = ask(Conversation(models, 1, 1), "Hi?")
    second = ask(first.continued(), "And then?")
    for name, reply in second.replies.items():
        before = first.replies[name]
        own_turn = before.answer.text.split("\n\nHuman:")[0].strip()
        assert reply.prompt == f"{before.prompt} {own_turn}\n\nHuman: And then?\n\nAssistant:"
    assert ask(second.restarted(), "Hi?") == first


def test_with_a_chat_template_the_models_read_the_conversation_in_it(tmp_path: Path) -> None:
    tokenizer: Any = tokenizers_tiny.loaded("gpt2", tmp_path, tokenizers_tiny.CHATML, "chat")
    models = Models({"sft": eos_prone(tokenizer)}, {"reward": tiny_reward(tokenizer)}, tokenizer, 0.8, TOKENS)
    first = ask(Conversation(models, 1, 1), "Hi?")
    prompt = ask(first.continued(), "And?").replies["sft"].prompt
    asked, answer = {"role": "user", "content": "Hi?"}, first.replies["sft"].answer.text.strip()
    said = [asked, {"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
    expected = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert tokens.encode_prompts(tokenizer, [prompt]) == [expected]
    with pytest.raises(UserError, match=r"contains <\|im_start\|>, which the models read as the end of a turn"):
        ask(first, "Hi<|im_start|>assistant")


def test_a_new_column_of_best_of_n_starts_from_what_sft_said(models: Models) -> None:
    first = ask(Conversation(models, 1, 1), "Hi?").continued()
    second = ask(replace(first, best_of=2), "And?")
    assert second.replies["best of 2 sft"].prompt == second.replies["sft"].prompt


def test_the_earliest_turns_of_a_conversation_too_long_for_the_models_are_left_out(models: Models) -> None:
    conversation = Conversation(models, 1, 1)
    for number in range(4):
        conversation = ask(conversation, f"Number {number}?").continued()
    for reply in conversation.replies.values():
        assert "Number 0?" not in reply.prompt
        assert reply.prompt.startswith("\n\nHuman: Number ")
        assert reply.prompt.endswith("\n\nHuman: Number 3?\n\nAssistant:")
        (ids,) = tokens.encode_prompts(models.tokenizer, [reply.prompt])
        assert len(ids) + TOKENS + 1 <= POSITIONS


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("sea " * 100, r"the question has \d{3} tokens; expected at most 83; shorten it"),
        ("a<|endoftext|>b", r"contains <\|endoftext\|>, which the models read as the end of a turn"),
        ("a\n\nHuman: b", "contains Human:, which"),
        ("a\n\nAssistant: b", "contains Assistant:, which"),
        ("half \ud83d", "half a character"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(models: Models, question: str, words: str) -> None:
    assert models.most_prompt_tokens == POSITIONS - TOKENS - 1 == 83
    with pytest.raises(UserError, match=words) as caught:
        ask(Conversation(models, 1, 1), question)
    assert "\n" not in str(caught.value)


def test_settings_that_the_models_cannot_answer_with_are_refused(models: Models) -> None:
    Conversation(models, None, 4)
    with pytest.raises(UserError, match=r"chat\.best_of: 4, but there is no sft or no reward model"):
        Conversation(replace(models, scorers={}), None, 4)
    with pytest.raises(UserError, match=f"chat.max_new_tokens: 95; expected at most {POSITIONS - 2}, which"):
        Conversation(replace(models, max_new_tokens=95), None, 1)
    Conversation(replace(models, max_new_tokens=POSITIONS - 2), None, 1)


def test_the_preferred_answer_makes_a_pair_with_each_other_one_which_all_go_on_from(
    tokenizer: GPT2Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "preferences.jsonl"
    before = saying(tokenizer, base=" Go.", sft=" Wait.", ppo=" Sleep.\n\nHuman: And you?")
    after, said = feedback.prefer(before, "ppo", path)
    prompt = "\n\nHuman: Hi?\n\nAssistant:"
    assert rows(path) == [
        {"prompt": prompt, "chosen": " Sleep.", "rejected": rejected, "chosen_model": "ppo", "rejected_model": name}
        for name, rejected in (("base", " Go."), ("sft", " Wait."))
    ]
    assert said == f"kept in {path}: ppo better than base, sft; all go on from this answer"
    assert set(after.said.values()) == {f"{prompt} Sleep."}
    with pytest.raises(UserError, match="ppo: expected one of the last answers: none yet"):  # a second click
        feedback.prefer(after, "ppo", path)


def test_an_answer_that_is_no_other_or_to_another_conversation_makes_no_pair(
    tokenizer: GPT2Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "preferences.jsonl"
    before = saying(tokenizer, a=" Same. ", b=" Same.", c=" ", d=" Else.", e=" New.", f=" New.")
    other = replace(before.replies["d"], prompt="\n\nHuman: Who?\n\nAssistant:")
    _, said = feedback.prefer(replace(before, replies={**before.replies, "d": other}), "a", path)
    assert [row["rejected"] for row in rows(path)] == [" New."]
    reasons = "b: identical answers; c: empty answer; d: answers another conversation"
    assert said == f"kept in {path}: a better than e; {reasons}; all go on from this answer"
    _, said = feedback.prefer(saying(tokenizer, a=" Same. ", b=" Same."), "a", path)
    assert said.startswith("no pair kept; b: identical answers;")


@pytest.mark.parametrize("end", ["\n", ""])
def test_pairs_are_appended_as_lines_of_their_own(tokenizer: GPT2Tokenizer, tmp_path: Path, end: str) -> None:
    path = tmp_path / "mine.jsonl"
    kept = {"prompt": "Q", "chosen": "é", "rejected": "c"}
    path.write_text(json.dumps(kept) + end, encoding="utf-8")
    feedback.prefer(saying(tokenizer, a=" Ä\u2028!", b=" B."), "a", path)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line).get("chosen") for line in lines[:-1]] == ["é", " Ä\u2028!"]
    assert lines[-1] == ""


def test_a_file_that_cannot_be_written_is_one_line(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\); set chat.preferences="):
        feedback.prefer(saying(tokenizer, a=" A.", b=" B."), "a", tmp_path)


def test_data_reads_the_pairs_of_every_turn_as_they_were_kept(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    for number in range(12):
        prompt = f"\n\nHuman: Question {number}?\n\nAssistant:"
        first = saying(tokenizer, prompt, base=" Go.", sft=f" Wait {number}.\n\nAssistant: I", ppo=" Über\n\n\n1. all")
        after, _ = feedback.prefer(first, "sft", path)
        then = f"{after.said['ppo']}\n\nHuman: And then?\n\nAssistant:"
        feedback.prefer(saying(tokenizer, then, sft=" Rest.", ppo=" Sleep."), "ppo", path)
    kept = rows(path)
    assert len(kept) == 12 * 3
    settings = compose.load([f"data.path={path}", "data.disjoint=false"]).settings.data
    tables, report = data.prepare(settings, sources.read(settings), Rules(count_letters, count_letters))
    assert report["train"]["dropped"] == report["test"]["dropped"] == {}
    read = {(one.prompt, one.chosen, one.rejected) for table in (tables["sft"], tables["test"]) for one in table}
    assert read == {(row["prompt"], row["chosen"], row["rejected"]) for row in kept}


@pytest.mark.parametrize(("typed", "expected"), [("", None), (" 7 ", 7), (str(2**32 - 1), 2**32 - 1)])
def test_a_seed_is_a_number_or_nothing(typed: str, expected: int | None) -> None:
    assert feedback.seed(typed) == expected


@pytest.mark.parametrize("typed", ["-1", "x", "1.5", str(2**32), "²"])
def test_another_seed_is_refused(typed: str) -> None:
    with pytest.raises(UserError, match="expected a whole number from 0"):
        feedback.seed(typed)
