"""Talking to the models of a run, or to named ones, in the terminal."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
from rich.console import Console

from gpt2_rlhf import cli
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.models import loading, model_files, tokens
from gpt2_rlhf.models.model_files import EMBEDDED_DIR
from gpt2_rlhf.rows import feedback, feedback_terminal
from gpt2_rlhf.rows.feedback import Conversation
from gpt2_rlhf.store import run as runs
from helpers import chat_run, tokenizers_tiny
from helpers.local_hub import in_process
from helpers.local_hub.server import Hub
from helpers.local_hub.store import Blob, new_repository
from helpers.tiny import tiny_policy

RUN, OLDER = "0123456789ab", "0199999999ab"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs; the last is the newest."""
    folder = tmp_path_factory.mktemp("chat") / "outputs"
    chat_run.write(folder, OLDER)
    chat_run.write(folder, RUN)
    return folder


@pytest.fixture(scope="module")
def settings(outputs: Path) -> Settings:
    return compose.load([f"output_dir={outputs}", "chat.seed=3", "chat.max_new_tokens=12"]).settings


@pytest.fixture(scope="module")
def conversation(settings: Settings) -> Conversation:
    return feedback.start(settings)


def talk(conversation: Conversation, settings: Settings, *lines: str) -> str:
    """What the chat prints where the output is no terminal."""
    printed = io.StringIO()
    console = Console(file=printed, highlight=False, markup=False, soft_wrap=True)
    feedback_terminal.talk(conversation, settings, lines, console)
    return printed.getvalue()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["chat", *arguments])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out.count("\n") <= 1  # the greeting, which precedes the import of torch
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_command_answers_each_line_of_its_input(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"How do I rest?\n\xff\n/quit\nNever\n"), "utf-8"))
    cli.main(["chat", f"output_dir={outputs}", "chat.seed=3", "chat.max_new_tokens=8"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run {RUN}; ask a question, /help lists commands, /quit ends"
    assert lines[1] == "> How do I rest?"
    for name in ("base", "sft", "ppo"):
        assert sum(line.startswith(f"{name} (reward ") and " judge " in line for line in lines) == 1
    assert "seed 3" in lines
    assert "error: the question has half a character; type it again in UTF-8" in lines
    assert lines[-1] == "> /quit"


@pytest.mark.parametrize("stdin", [None, io.StringIO("")])
def test_without_input_the_command_ends(
    stdin: io.StringIO | None, outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)  # None: closed
    cli.main(["chat", f"output_dir={outputs}"])
    assert capsys.readouterr().out.startswith(f"run {RUN}; ")


def test_the_settings_of_the_evaluation_hold_unless_the_chat_sets_others(
    outputs: Path, settings: Settings, conversation: Conversation
) -> None:
    own = runs.read(outputs / "latest", settings).settings.evaluate
    models = feedback.start(compose.load([f"output_dir={outputs}"]).settings).models
    assert (models.temperature, models.max_new_tokens) == (own.temperature, own.max_new_tokens)
    assert conversation.models.max_new_tokens == 12


def test_in_a_terminal_the_answers_stand_side_by_side_in_80_columns(
    settings: Settings, conversation: Conversation
) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=80, force_terminal=True, color_system=None, highlight=False, markup=False)
    feedback_terminal.talk(conversation, settings, ["How do I rest?"], console)
    *_, answered = feedback.ask(conversation, "How do I rest?")
    shown = printed.getvalue().rpartition("base")[2].splitlines()
    assert shown[0].split() == ["sft", "ppo"]
    firsts = [reply.text.split()[0] for reply in answered.replies.values()]
    assert shown[2].split()[0] == firsts[0]
    assert all(word in shown[2] for word in firsts)
    assert all(len(line.replace("\x1b[2K", "")) <= 80 for line in shown)


def test_the_first_line_can_be_typed_before_the_models_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    later = iter(["And then?"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi?\n"))
    monkeypatch.setattr("builtins.input", lambda prompt: next(later, None) or (_ for _ in ()).throw(EOFError))
    assert list(feedback_terminal._typed()) == ["Hi?\n", "And then?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert next(feedback_terminal._typed()) == "/quit"  # Ctrl-D


def test_commands_change_what_the_next_question_gets(settings: Settings, conversation: Conversation) -> None:
    def names(text: str) -> list[str]:
        return [line.partition(" (")[0] for line in text.splitlines() if " (reward" in line]

    assert names(talk(conversation, settings, "/best 2", "Hi?")) == ["base", "sft", "ppo", "best of 2 sft"]
    assert names(talk(conversation, settings, "/best 2", "/best 1", "Hi?")) == ["base", "sft", "ppo"]
    assert "seed 99\n" in talk(conversation, settings, "/seed 99", "Hi?")
    assert "seed 3\n" not in talk(conversation, settings, "/seed", "Hi?")
    once = talk(conversation, settings, "Hi?")
    assert talk(conversation, settings, "Hi?", "/new", "Hi?") == once * 2
    assert talk(conversation, settings, "", "/quit", "Hi?") == ""
    assert talk(conversation, settings, "/help").splitlines() == feedback_terminal.HELP.splitlines()


def test_the_chat_goes_on_with_another_run(settings: Settings, conversation: Conversation) -> None:
    assert talk(conversation, settings, "/run").split() == [RUN, OLDER]
    assert talk(conversation, settings, "/run 019").endswith(f"run {OLDER}\n")
    too_long = replace(settings, chat=replace(settings.chat, max_new_tokens=600))
    assert "error: chat.max_new_tokens: 600; expected at most 510" in talk(conversation, too_long, "/run 019")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/foo", "/foo: not a command, or not with these words; /help lists the commands"),
        ("/best x", "/best x: not a command, or not with these words"),
        ("/best 0", "/best 0: not a command, or not with these words"),
        ("/seed -1", "seed: -1; expected a whole number from 0 to 4294967295"),
        ("/better ppo", "ppo: expected one of the last answers: none yet"),
        ("/run abc", f"no run begins with abc; expected one of {RUN}, {OLDER}"),
        ("/run 01", f"several runs begin with 01; expected one of {RUN}, {OLDER}"),
        ("word " * 600, "the question has "),
    ],
)
def test_what_is_wrong_with_a_line_is_said_and_the_chat_goes_on(
    line: str, words: str, settings: Settings, conversation: Conversation
) -> None:
    said, *more = talk(conversation, settings, line, "/run 01999").splitlines()
    assert said.startswith("error: ")
    assert words in said
    assert more == [f"run {OLDER}"]


def test_a_preference_is_kept_beside_the_runs_and_all_go_on_from_it(
    outputs: Path, settings: Settings, conversation: Conversation
) -> None:
    text = talk(conversation, settings, "How do I sleep better?", "/better p", "And then?", "/better base")
    kept = [json.loads(line) for line in (outputs / "preferences.jsonl").read_text().splitlines()]
    assert f"kept in {outputs / 'preferences.jsonl'}: ppo better than " in text
    assert {row["chosen_model"] for row in kept} == {"ppo", "base"}
    first, *_, last = kept
    assert last["prompt"] == f"{first['prompt']}{first['chosen']}\n\nHuman: And then?\n\nAssistant:"


def test_a_run_is_chosen_by_the_beginning_of_its_hash(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.find(str(outputs), OLDER[:4]).name == OLDER
    assert "no run begins with zzz" in fails(capsys, f"output_dir={outputs}", "chat.run=zzz")


def test_without_a_finished_run_the_command_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no finished model" in fails(capsys, f"output_dir={tmp_path}")
    assert "run `make pipeline` first" in fails(capsys, f"output_dir={tmp_path}", "chat.run=abc")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed: not read by the chat, which takes chat.* and output_dir; choose a run by chat.run"),
        ("chat.best_of=0", "chat.best_of: 0; expected a whole number from 1 to 1024"),
        ("chat.max_new_tokens=600", "chat.max_new_tokens: 600; expected at most 510"),
        ("chat.preferences=here.txt", "chat.preferences: here.txt; expected a name that ends with .jsonl"),
    ],
)
def test_settings_that_the_chat_cannot_use_are_one_line(
    override: str, words: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(capsys, f"output_dir={outputs}", override)


def test_a_page_without_gradio_is_one_line_that_says_how_to_install_it(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "install it: pip install '.[demo]'" in fails(capsys, "--web", f"output_dir={outputs}")


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_run_whose_model_is_damaged_names_the_stage_and_the_command_that_builds_it(
    damage: str, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(outputs, tmp_path / "outputs", symlinks=True)
    weights = tmp_path / "outputs" / "latest" / "ppo" / "model" / "model.safetensors"
    if damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    else:
        weights.unlink()
    error = fails(capsys, f"output_dir={tmp_path / 'outputs'}")
    assert f"stages/ppo-{RUN}: " in error
    assert error.endswith("build it again: make pipeline\n")


def test_a_base_model_that_is_no_longer_that_of_the_run_is_not_shown_as_such(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_files, "identity", lambda model, template: "of the next version")
    error = fails(capsys, f"output_dir={outputs}")
    assert error == "error: model.name: embedded has changed since the run; build it again: make pipeline\n"


def test_named_folders_are_talked_to_and_scored(outputs: Path) -> None:
    latest = outputs / "latest"
    overrides = [f"chat.models.ppo={latest}/ppo/model", f"chat.models.reward={latest}/reward/model"]
    settings = compose.load([*overrides, "chat.models.base=embedded", "chat.max_new_tokens=5"]).settings
    text = talk(feedback.start(settings), settings, "Hi?")
    names = [line.partition(" (")[0] for line in text.splitlines() if line.count("(reward ") == 1]
    assert names == ["base", "ppo"]
    assert "judge" not in text


def with_other_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 1536, "content": "<more>"})
    path.write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1537}))


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights.pop(min(weights))
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("ppo", shutil.rmtree, "there is no folder"),
        ("ppo", lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        ("ppo", cut_short, "is cut short or padded"),
        ("ppo", without_a_tensor, "its weights have no "),
        ("ppo", with_other_vocabulary, "expected the vocabulary of embedded"),
        ("reward", lambda _: None, "is a model that answers; expected a reward model"),
    ],
)
def test_a_named_model_that_cannot_be_talked_to_is_one_line(
    name: str, damage: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(EMBEDDED_DIR, tmp_path / "model")
    damage(tmp_path / "model")  # type: ignore[operator]
    error = fails(capsys, "chat.models.base=embedded", f"chat.models.{name}={tmp_path / 'model'}")
    assert words in error
    assert error.startswith(f"error: chat.models.{name}: ")
    assert "model.name" not in error.replace(f"chat.models.{name}", "")


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instruct model, and models trained from it: `chat` on prompts in its chat template, `plain` on transcripts."""
    folder = tmp_path_factory.mktemp("forms")
    base = tokenizers_tiny.write("gpt2", folder / "instruct", tokenizers_tiny.CHATML)
    for name, template in (("chat", "chat"), ("plain", None)):
        tokenizer = tokens.load_tokenizer(str(base), template)
        loading.save(tiny_policy(tokenizer), tokenizer, folder / name)
    tiny_policy(tokenizer).save_pretrained(base)
    return folder


@pytest.mark.parametrize(("sft", "form"), [("chat", "<|im_start|>"), ("plain", "\n\nHuman: ")])
def test_named_models_get_the_prompts_that_they_were_trained_on_and_so_does_their_base(
    sft: str, form: str, forms: Path
) -> None:
    named = [f"chat.models.base={forms / 'instruct'}", f"chat.models.sft={forms / sft}", "chat.max_new_tokens=5"]
    models = feedback.start(compose.load(named).settings).models
    assert list(models.policies) == ["base", "sft"]
    (ids,) = tokens.encode_prompts(models.tokenizer, ["\n\nHuman: Hi\n\nAssistant:"])
    assert str(models.tokenizer.decode(ids)).startswith(form)


def test_named_models_of_two_forms_of_prompts_are_refused(forms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, f"chat.models.sft={forms / 'chat'}", f"chat.models.ppo={forms / 'plain'}")
    assert error.startswith("error: chat.models.ppo: ")
    assert f"expected the chat template and the EOS of {forms / 'chat'}" in error


def test_a_reward_model_does_not_answer(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = outputs / "latest" / "reward" / "model"
    assert "is a reward model; expected a model that answers" in fails(capsys, f"chat.models.sft={folder}")
    assert "no model that answers; set chat.models.base" in fails(capsys, f"chat.models.reward={folder}")


@pytest.mark.slow
def test_published_models_are_downloaded_once_by_name_and_revision(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def publish(hub: Hub, name: str, folder: Path) -> str:
        made = hub.repositories[name] = new_repository(name, is_private=False)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.store_object(files["model.safetensors"])
        return made.commit(
            "main", "model", {file: Blob(body, file.endswith(".safetensors")) for file, body in files.items()}
        ).sha

    with in_process.hub(tmp_path / "cache", monkeypatch) as hub:
        commit = publish(hub, "user/ppo", outputs / "latest" / "ppo" / "model")
        publish(hub, "user/reward", outputs / "latest" / "reward" / "model")
        named = [f"chat.models.ppo=user/ppo@{commit}", "chat.models.reward=user/reward", "chat.max_new_tokens=5"]
        settings = compose.load(named).settings
        assert "ppo (reward " in talk(feedback.start(settings), settings, "Hi?")
        stored = hub.calls("storage")
        feedback.start(settings)
        assert hub.calls("storage") == stored
        error = fails(capsys, "chat.models.ppo=user/other")
    assert "chat.models.ppo: the Hub has no model user/other" in error
    assert "set chat.models.ppo to a local folder" in error
