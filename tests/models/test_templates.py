"""Prompts as transcripts and in chat templates: ids as a user of the published model gets them, for every tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import loading, model_checks, templates, tokens
from gpt2_rlhf.models.templates import messages
from helpers.tiny import tiny_policy
from helpers.tokenizers_tiny import CHATML, KINDS, LLAMA_2, loaded, write

TALK = "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour.\n\nHuman: And salt?\n\nAssistant:"
ROW = {"prompt": TALK, "chosen": " Then bake it.", "rejected": " No."}


def published(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer that a user of the published model loads."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def of_template(tokenizer: Any, turns: Any, **more: Any) -> list[int]:
    return tokenizer.apply_chat_template(turns, return_dict=False, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_ids_that_the_published_tokenizer_gives_its_text(kind: str, tmp_path: Path) -> None:
    tokenizer = loaded(kind, tmp_path / "base")
    user, eos = published(tokenizer, tmp_path / "published"), tokens.eos_id(tokenizer)
    assert tokens.encode_ppo(tokenizer, [ROW])[0]["input_ids"] == user(TALK)["input_ids"]
    whole = [*user(TALK + ROW["chosen"])["input_ids"], eos]
    assert tokens.encode_sft(tokenizer, [ROW])[0]["input_ids"] == whole
    assert tokens.encode_reward(tokenizer, [ROW])[0]["chosen_ids"] == whole
    assert len(user(TALK)["input_ids"]) + tokens.count_answers(tokenizer, [ROW["chosen"]])[0] + 1 == len(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [CHATML, LLAMA_2])
def test_a_row_has_the_ids_that_the_chat_template_gives_its_messages(own: str, kind: str, tmp_path: Path) -> None:
    tokenizer = loaded(kind, tmp_path / "base", own, "chat")
    user = published(tokenizer, tmp_path / "published")
    prompt = of_template(user, messages(TALK), add_generation_prompt=True)
    assert tokens.encode_ppo(tokenizer, [ROW])[0]["input_ids"] == prompt
    assert tokens.count_prompts(tokenizer, [TALK]) == [len(prompt)]
    answered = of_template(user, [*messages(TALK), {"role": "assistant", "content": "Then bake it."}])
    *answer, end = (label for label in tokens.encode_sft(tokenizer, [ROW])[0]["labels"] if label != -100)
    assert answered[: len(prompt) + len(answer)] == [*prompt, *answer]
    assert end == tokens.eos_id(tokenizer) == user.convert_tokens_to_ids("<|im_end|>" if own == CHATML else "</s>")
    assert end in answered[len(prompt) + len(answer) :]
    assert tokens.encode_reward(tokenizer, [ROW])[0]["chosen_ids"] == [*prompt, *answer, end]
    assert tokens.count_answers(tokenizer, [ROW["chosen"]]) == [len(answer)]


@pytest.mark.parametrize("own", [None, CHATML])
def test_the_published_tokenizer_of_a_model_of_transcripts_renders_transcripts(own: str | None, tmp_path: Path) -> None:
    tokenizer = loaded("gemma", tmp_path / "base", own)
    user = published(tokenizer, tmp_path / "published")
    turns = messages(f"\n\nSystem: Be kind.{TALK}")
    assert user.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        f"<s>\n\nSystem: Be kind.{TALK}"
    )
    answered = of_template(user, [*messages(TALK), {"role": "assistant", "content": "Then bake it."}])
    assert answered == tokens.encode_sft(tokenizer, [ROW])[0]["input_ids"]
    assert tokenizer.eos_token == "</s>"  # that of the tokenizer, whatever its template ends answers with


@pytest.mark.parametrize(("own", "template"), [(None, None), (CHATML, None), (CHATML, "chat"), (LLAMA_2, "chat")])
def test_a_published_tokenizer_is_loaded_for_the_prompts_of_its_training(
    own: str | None, template: str | None, tmp_path: Path
) -> None:
    trained = loaded("gpt2", tmp_path / "base", own, template)
    trained.save_pretrained(tmp_path / "published")
    again = tokens.load_published(str(tmp_path / "published"))
    assert tokens.encode_sft(again, [ROW]) == tokens.encode_sft(trained, [ROW])
    assert (again.chat_template, again.eos_token) == (trained.chat_template, trained.eos_token)


def test_a_published_template_that_cannot_be_used_leaves_transcripts(tmp_path: Path) -> None:
    write("gpt2", tmp_path, "{{ raise_exception('no') }}")
    assert not tokens.has_chat_template(tokens.load_published(str(tmp_path)))


def test_a_saved_model_stops_at_the_end_of_the_chat_template_alone(tmp_path: Path) -> None:
    tokenizer: Any = loaded("gpt2", tmp_path / "base", CHATML, "chat")
    model = tiny_policy(tokenizer)
    model.generation_config.eos_token_id = [2, 3]  # as the models that come with several
    model.config.eos_token_id = 2
    loading.save(model, tokenizer, tmp_path / "model")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "model" / file).read_text())["eos_token_id"] == end
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id == end


def test_a_template_with_another_end_than_eos_keeps_what_it_renders_for_eos(tmp_path: Path) -> None:
    both = CHATML.replace("<|im_end|>\\n", "<|im_end|>' + eos_token + '\\n")
    tokenizer = loaded("gpt2", tmp_path, both, "chat")
    assert tokenizer.eos_token == "<|im_end|>"
    prompt = tokenizer.decode(tokens.encode_ppo(tokenizer, [ROW])[0]["input_ids"])
    assert prompt.count("<|im_end|></s>") == prompt.count("<|im_end|>") == 3


def test_a_template_without_an_end_of_answers_leaves_eos(tmp_path: Path) -> None:
    without = CHATML.replace("<|im_end|>", "")
    assert loaded("gpt2", tmp_path, without, "chat").eos_token == "</s>"


def test_a_template_with_the_date_renders_the_same_every_day(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    tokenizer = loaded("gpt2", tmp_path / "base", dated, "chat")
    user = published(tokenizer, tmp_path / "published")
    prompt = user.apply_chat_template(messages(TALK), tokenize=False, add_generation_prompt=True)
    assert prompt.startswith("26 Jul 2024<|im_start|>user")
    assert user(prompt)["input_ids"] == tokens.encode_ppo(tokenizer, [ROW])[0]["input_ids"]


def test_of_several_templates_the_default_is_used(tmp_path: Path) -> None:
    folder = write("gpt2", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"tool_use": "tools", "default": CHATML}
    tokenizer.save_pretrained(folder)
    assert tokens.load_tokenizer(str(folder), "chat").eos_token == "<|im_end|>"


THINKING = CHATML.replace("'<|im_start|>' + m.role + '\\n'", "'<|im_start|>' + m.role + '\\n<think>'")


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        (None, "has none"),
        ("{{ raise_exception('too\nshy') }}", r"refuses a question and its answer \(too shy\)"),
        ("{{ messages[0]['content'] + 1 }}", "refuses a question and its answer"),
        ("{% if %}", "refuses a question and its answer"),
        (CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif"), "puts text before the answer"),
        (THINKING, "puts text before the answer"),
        (CHATML.replace("<|im_end|>\\n", "\\n### End"), "ends an answer with '### End', which is not one token"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused_before_training(
    own: str | None, fault: str, tmp_path: Path
) -> None:
    write("gpt2", tmp_path, own)
    shape = {"vocab_size": 400, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = Model("a-shape", None, str(tmp_path), shape)
    model_checks.check(model)
    for refuse in (
        lambda: tokens.load_tokenizer(str(tmp_path), "chat"),
        lambda: model_checks.check(model, template="chat"),
    ):
        with pytest.raises(UserError, match=f"data.template: chat, but .*{fault}.*; set data.template=null") as error:
            refuse()
        assert "\n" not in str(error.value)


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    tokenizer = loaded("gpt2", tmp_path, LLAMA_2, "chat")
    assert tokens.refusal(tokenizer, TALK) is None
    assert tokens.refusal(tokenizer, f"\n\nSystem: Be kind.{TALK}") == ("refused by the chat template: no system role")


def test_the_padding_is_no_token_of_the_template(tmp_path: Path) -> None:
    tokenizer = loaded("gemma", tmp_path, CHATML, "chat")  # it has no bytes that could pad
    assert tokens.padding_copy(tokenizer, "left").pad_token == "<pad>"
    assert {"<|im_start|>", "<|im_end|>"} < set(tokens.special_tokens(tokenizer))


NOTHING_SAID = [("user", "a Human: b"), ("assistant", "")]


@pytest.mark.parametrize(
    ("transcript", "turns"),
    [
        ("\n\nHuman: Hi\n\nAssistant:", [("user", "Hi")]),
        (TALK, [("user", "How do I bake bread?"), ("assistant", "Mix flour."), ("user", "And salt?")]),
        ("\n\nSystem: Be\n\nkind.\n\nHuman: Hi\n\nAssistant:", [("system", "Be\n\nkind."), ("user", "Hi")]),
        ("A talk.\n\nHuman: Hi\n\nAssistant:", [("system", "A talk."), ("user", "Hi")]),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", [("user", "a"), ("user", "b")]),
        (
            "\n\nHuman: a Human: b\n\nAssistant:\n\nHuman:\n\nAssistant:",
            [("user", "a Human: b"), ("assistant", ""), ("user", "")],
        ),
    ],
)
def test_a_transcript_is_read_back_as_messages(transcript: str, turns: list[tuple[str, str]]) -> None:
    assert [tuple(one.values()) for one in templates.messages(transcript)] == turns
