"""Publish to a hub without faults: what is refused before training, what is pushed, and that the token stays secret."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from gpt2_rlhf import pipeline, publish
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.hub import repository
from gpt2_rlhf.hub.repository import Pushed, Target
from gpt2_rlhf.launch import tasks
from gpt2_rlhf.models import loading, model_files
from helpers import finished_run
from helpers.finished_run import HASTE, RUN, TOKEN
from helpers.local_hub import answers
from helpers.local_hub.faults import Fault
from helpers.local_hub.server import Hub
from helpers.local_hub.store import Account, Blob, new_repository
from helpers.tiny import tiny_reward, tiny_tokenizer

REPO = "somebody/demo"
LOOKING = replace(HASTE, tries=1)
PUSHED = {".gitattributes", "README.md", "config.json", "model.safetensors", "report/reward.png"}
WRITING = ("create", "preupload", "batch", "put", "commit", "tag", "branch")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        finished_run.use_hub(running, tmp_path / "hf", monkeypatch)
        yield running


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return finished_run.write(tmp_path / "outputs")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with seed=3, with small texts as weights; tests get a copy."""
    folder = tmp_path_factory.mktemp("written")
    finished_run.write_evaluated(folder, ["seed=3", "card.author=Lovelace"])
    return folder


@pytest.fixture
def evaluated(written: Path, tmp_path: Path) -> Path:
    """outputs/latest of the run."""
    shutil.copytree(written, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs" / "latest"


@pytest.fixture
def push(hub: Hub, model_dir: Path, tmp_path: Path) -> Callable[..., None]:
    """Return a function that publishes the run without loading it back, since its weights are random bytes."""

    def run(*overrides: str) -> None:
        planned = finished_run.planned([f"output_dir={tmp_path / 'outputs'}", *overrides])
        publish.push(planned, HASTE, [repository.fetch])

    return run


def test_a_push_is_one_commit_of_all_but_hidden_files_in_a_private_repository(
    hub: Hub, push: Callable[..., None], model_dir: Path
) -> None:
    push(f"publish.repo_id={REPO}")
    repository = hub.repositories[REPO]
    head, *before = repository.history()
    assert len(before) == 1
    assert repository.is_private
    assert set(head.files) == PUSHED
    assert head.files["model.safetensors"].content == (model_dir / "model.safetensors").read_bytes()
    assert repository.tags == {f"run-{RUN}": head.sha}


def test_pushing_again_makes_no_commit(hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    push(f"publish.repo_id={REPO}")
    head = hub.repositories[REPO].branches["main"]
    push(f"publish.repo_id={REPO}")
    assert hub.repositories[REPO].branches["main"] == head
    assert hub.repositories[REPO].tags == {f"run-{RUN}": head}
    assert hub.calls("commit") == 1
    assert "which held these files already" in capfd.readouterr().out


def test_a_changed_file_is_one_more_commit_and_the_tag_of_the_run_stays(
    hub: Hub, push: Callable[..., None], model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push(f"publish.repo_id={REPO}")
    first = hub.repositories[REPO].branches["main"]
    (model_dir / "config.json").write_text("{}")
    push(f"publish.repo_id={REPO}")
    assert len(hub.repositories[REPO].history()) == 3
    assert hub.repositories[REPO].tags == {f"run-{RUN}": first}
    assert f"tag run-{RUN} stays at {first[:12]}" in capfd.readouterr().out


def test_with_private_false_the_repository_is_public(hub: Hub, push: Callable[..., None]) -> None:
    push(f"publish.repo_id={REPO}", "publish.private=false")
    assert not hub.repositories[REPO].is_private


def test_a_branch_is_created_and_gets_the_commit(hub: Hub, push: Callable[..., None]) -> None:
    push(f"publish.repo_id={REPO}", "publish.revision=seed-1")
    repository = hub.repositories[REPO]
    assert "model.safetensors" in repository.history("seed-1")[0].files
    assert "model.safetensors" not in repository.history("main")[0].files


def test_policy_and_reward_model_go_to_their_own_repositories(hub: Hub, push: Callable[..., None]) -> None:
    push("publish.repo_id=lab/demo", "publish.reward_repo_id=lab/demo-reward")
    found = {name: repo.history()[0].files["config.json"].content for name, repo in hub.repositories.items()}
    assert found == {"lab/demo": b'{"name": "model"}', "lab/demo-reward": b'{"name": "reward_model"}'}


def test_a_dry_run_shows_files_sizes_and_card_and_changes_nothing(
    hub: Hub, evaluated: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old = (evaluated / "model" / "README.md").read_bytes()
    hub.repositories[REPO] = new_repository(REPO, is_private=True)
    hub.repositories[REPO].commit("main", "old", {"old.json": Blob(b"{}", is_lfs=False)})
    publish.main(
        finished_run.planned([f"output_dir={evaluated.parent}", f"publish.repo_id={REPO}", "publish.dry_run=true"]),
        HASTE,
    )
    printed = capfd.readouterr().out
    size = (evaluated / "model" / "config.json").stat().st_size
    assert re.search(rf"^ +{size}  config\.json$", printed, flags=re.MULTILINE)
    assert f'from_pretrained("{REPO}")' in printed
    assert "publish: somebody/demo (private, exists with 2 files, which a push replaces), " in printed
    assert "somebody/demo: deletes what is not of this run: old.json" in printed
    assert sum(hub.calls(call) for call in WRITING) == 0
    assert (evaluated / "model" / "README.md").read_bytes() == old


def test_a_dry_run_without_a_name_makes_no_request(hub: Hub, evaluated: Path) -> None:
    publish.main(finished_run.planned([f"output_dir={evaluated.parent}", "publish.dry_run=true"]), HASTE)
    assert hub.log == []


def test_the_snippet_names_repository_and_branch_also_of_a_run_whose_overrides_are_not_repeated(
    hub: Hub, evaluated: Path
) -> None:
    both = ["publish.repo_id=lab/demo", "publish.reward_repo_id=lab/demo-reward"]
    for revision, place in ((None, ""), ("seed-1", ', revision="seed-1"')):
        branch = [] if revision is None else [f"publish.revision={revision}"]
        publish.main(finished_run.planned([f"output_dir={evaluated.parent}", *both, *branch]), HASTE, [])
        for repo_id in ("lab/demo", "lab/demo-reward"):
            card = hub.repositories[repo_id].history(revision or "main")[0].files["README.md"].content.decode()
            assert set(re.findall(r"from_pretrained\((.*)\)", card)) == {f'"{repo_id}"{place}'}
            assert "make pipeline seed=3" in card  # the command of the run, not of the push
            assert "Lovelace" in card  # its author too


def test_an_author_given_with_the_push_is_on_the_card(hub: Hub, evaluated: Path) -> None:
    overrides = [f"output_dir={evaluated.parent}", f"publish.repo_id={REPO}", "card.author=Noether"]
    publish.main(finished_run.planned(overrides), HASTE, [])
    assert "author = {Noether}" in hub.repositories[REPO].history()[0].files["README.md"].content.decode()


def test_files_that_are_not_of_the_run_are_deleted_by_the_same_commit_and_named(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    old = ("adapter_config.json", "chat_template.jinja", "report/old.png", "special_tokens_map.json")
    repository = hub.repositories[REPO] = new_repository(REPO, is_private=True)
    before = repository.commit("main", "by hand", {path: Blob(b"old", is_lfs=False) for path in (*old, "config.json")})
    push(f"publish.repo_id={REPO}")
    head, parent, *_ = repository.history()
    assert parent == before
    assert set(head.files) == PUSHED
    assert (
        f"publish: somebody/demo: deletes what is not of this run: {', '.join(old)}; commit {before.sha[:12]} "
        """still has it, and 'publish.keep=["adapter_config.json", "chat_template.jinja"]' would keep the first two\n"""
    ) in capfd.readouterr().out
    push(f"publish.repo_id={REPO}")
    assert repository.history()[0] == head
    assert "deletes" not in capfd.readouterr().out


def test_files_that_a_pattern_keeps_stay(hub: Hub, push: Callable[..., None]) -> None:
    repository = hub.repositories[REPO] = new_repository(REPO, is_private=True)
    old = ("LICENSE", "gguf/q4.gguf", "gguf/q8.gguf", "added_tokens.json")
    repository.commit("main", "by hand", {path: Blob(b"old", is_lfs=False) for path in old})
    push(f"publish.repo_id={REPO}", "publish.keep=[LICENSE, 'gguf/*']")
    assert set(repository.history()[0].files) == {*PUSHED, "LICENSE", "gguf/q4.gguf", "gguf/q8.gguf"}


def test_a_branch_loses_the_files_that_it_has_from_main(hub: Hub, push: Callable[..., None]) -> None:
    repository = hub.repositories[REPO] = new_repository(REPO, is_private=True)
    repository.commit("main", "by hand", {"added_tokens.json": Blob(b"{}", is_lfs=False)})
    push(f"publish.repo_id={REPO}", "publish.revision=seed-1")
    assert set(repository.history("seed-1")[0].files) == PUSHED
    assert "added_tokens.json" in repository.history("main")[0].files


def test_a_card_that_was_edited_on_the_website_is_named_by_its_commit_and_one_of_ours_is_not(
    hub: Hub, push: Callable[..., None], model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push(f"publish.repo_id={REPO}")
    (model_dir / "README.md").write_text(f"{finished_run.CARD}\nA second text.\n")
    push(f"publish.repo_id={REPO}")
    assert "replaces" not in capfd.readouterr().out
    edited = hub.repositories[REPO].commit("main", "Update README.md", {"README.md": Blob(b"mine", is_lfs=False)})
    push(f"publish.repo_id={REPO}")
    line = f"replaces the README.md of commit {edited.sha[:12]} (Update README.md) by the card of this run"
    assert f"publish: somebody/demo: {line}\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("tokenizer_config.json", {"eos_token": "!"}, "padding and EOS tokens"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "chat template"),
        ("generation_config.json", {"top_k": 5}, "sampling"),
        ("added_tokens.json", {"<tool>": 1536}, "vocabulary"),
        ("config.json", {"n_layer": 1}, "weights"),
        ("LICENSE", {}, None),
    ],
)
def test_what_loads_other_than_on_this_disk_is_named(
    name: str, change: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    shutil.copytree(model_files.EMBEDDED_DIR, there)
    old = json.loads((there / name).read_text()) if (there / name).is_file() else {}
    (there / name).write_text(json.dumps({**old, **change}))
    target = Target("publish.repo_id", str(there), True, "main", [], "model", "AutoModelForCausalLM")
    pushed = Pushed(target, model_files.EMBEDDED_DIR, [], "main", True, "main")
    if words is None:
        repository.load(HfApi(), pushed, str(tmp_path))
    else:
        with pytest.raises(UserError, match=f"loads with other {words} than"):
            repository.load(HfApi(), pushed, str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["publish.repo_id=demo"], "publish.repo_id: 'demo'; expected <user or organisation>/<name>"),
        (["publish.repo_id=some/body/demo"], "publish.repo_id: 'some/body/demo'; expected"),
        (["publish.repo_id=somebody/de--mo"], "Cannot have -- or .. in repo_id: 'somebody/de--mo'"),
        (["publish.repo_id=other/demo"], "other is neither you nor an organisation of yours"),
        (["publish.repo_id=club/demo"], "you may only read in club"),
        (["publish.repo_id=somebody/open"], "somebody/open is public, expected private; nothing was pushed"),
        (["publish.repo_id=somebody/closed", "publish.private=false"], "somebody/closed is private, expected public"),
        (["publish.reward_repo_id=other/demo"], "publish.reward_repo_id: other/demo: other is neither you"),
        (["publish.repo_id=lab/demo", "publish.reward_repo_id=lab/demo"], "publish.reward_repo_id: lab/demo takes"),
    ],
)
def test_a_name_that_cannot_be_pushed_to_is_refused(hub: Hub, overrides: list[str], words: str) -> None:
    hub.repositories["somebody/open"] = new_repository("somebody/open", is_private=False)
    hub.repositories["somebody/closed"] = new_repository("somebody/closed", is_private=True)
    with pytest.raises(UserError) as caught:
        publish.check(compose.load(overrides).settings, LOOKING)
    assert words in str(caught.value)
    assert sum(hub.calls(call) for call in WRITING) == 0


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "there is no Hub token on this machine; run `hf auth login`"),
        ("hf_reader", "your Hub token may only read"),
        ("hf_scoped", "your fine-grained Hub token lacks repo.write on somebody"),
        ("hf_unknown", "the Hub answered 401 Unauthorized to GET /api/whoami-v2"),
        ("hf_br\x01ken", "your Hub token holds characters that no token has"),
    ],
)
def test_a_token_that_cannot_push_is_refused(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    token: str | None,
    words: str,
) -> None:
    hub.accounts["hf_reader"] = Account("somebody", role="read")
    hub.accounts["hf_scoped"] = Account("somebody", role="fineGrained", scopes={"somebody": ["repo.content.read"]})
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as caught:
        publish.check(compose.load([f"publish.repo_id={REPO}"]).settings, LOOKING)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    printed = capfd.readouterr()
    assert token is None or token not in f"{caught.value}{printed}"


def test_a_name_that_cannot_be_pushed_to_stops_the_pipeline_before_training(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_training(*_: object) -> None:
        raise AssertionError("a stage was started")

    monkeypatch.setattr(tasks, "run_all", no_training)
    with pytest.raises(UserError, match="other is neither you"):
        pipeline.run([f"output_dir={tmp_path / 'outputs'}", "publish.repo_id=other/demo"], "evaluate")


def test_a_hub_that_does_not_answer_is_one_line_within_seconds(hub: Hub) -> None:
    hub.fail(Fault("whoami", "hang", times=9))
    with pytest.raises(UserError, match=r"the Hub fell silent \(ReadTimeout\) \(try 1 of 1\)"):
        publish.check(compose.load([f"publish.repo_id={REPO}"]).settings, replace(HASTE, tries=1, silence_s=0.3))


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        publish.check(compose.load([f"publish.repo_id={REPO}"]).settings, LOOKING)


def test_a_license_that_the_hub_does_not_know_is_refused_before_training(hub: Hub) -> None:
    overrides = [f"publish.repo_id={REPO}", "card.license=mine-alone"]
    with pytest.raises(UserError, match=r"^card\.license: 'mine-alone', which the Hub refuses; expected one of http"):
        publish.check(compose.load(overrides).settings, LOOKING)


def test_a_full_disk_is_refused_before_training(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"1\.0 MB free, expected 102\.6 MB for the copy .* set TMPDIR"):
        publish.check(compose.load([f"publish.repo_id={REPO}"]).settings, LOOKING)


def test_a_repository_that_the_hub_creates_public_against_the_setting_gets_nothing(
    hub: Hub, push: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = new_repository
    monkeypatch.setattr("helpers.local_hub.answers.new_repository", lambda name, is_private: make(name, False))
    with pytest.raises(UserError, match="somebody/demo is public, expected private; nothing was pushed"):
        push(f"publish.repo_id={REPO}")
    assert len(hub.repositories[REPO].history()) == 1


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_hub_that_lists_another_hash_is_a_failure(
    hub: Hub, push: Callable[..., None], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    listed = answers._entry
    wrong = Blob(b"not what was pushed", is_lfs=path == "model.safetensors")
    monkeypatch.setattr(answers, "_entry", lambda name, blob: listed(name, blob if name != path else wrong))
    with pytest.raises(UserError, match=f"{path} in commit [0-9a-f]{{12}} of somebody/demo is not the file on this"):
        push(f"publish.repo_id={REPO}")


def test_without_a_run_there_is_nothing_to_publish(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no finished model, or a stage of it is lost or damaged; run `make"):
        publish.main(finished_run.planned([f"output_dir={tmp_path / 'outputs'}", f"publish.repo_id={REPO}"]), HASTE)


def test_the_token_is_in_no_line_no_file_and_no_page(
    hub: Hub, push: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fail(Fault("whoami", "reset"), Fault("commit", "status", times=2), Fault("commit", "lost"))
    push(f"publish.repo_id={REPO}")
    hub.fail(Fault("preupload", "status", status=403))
    with pytest.raises(UserError) as caught:
        push(f"publish.repo_id={REPO}")
    assert any(request.has_token for request in hub.log)
    pages = b"".join(blob.content for blob in hub.repositories[REPO].history()[0].files.values())
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    printed = capfd.readouterr()
    assert "try 2 of 5" in printed.out
    for text in (printed.out, printed.err, str(caught.value)):
        assert TOKEN not in text
    assert TOKEN.encode() not in pages + files


def test_a_crash_of_the_child_process_is_a_traceback_without_the_token(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Account, "whoami", lambda self: {})  # an answer without the fields of an account
    with pytest.raises(UserError, match="look crashed; the traceback above is a defect"):
        push(f"publish.repo_id={REPO}")
    printed = capfd.readouterr().err
    assert "KeyError: 'name'" in printed
    assert TOKEN not in printed


def test_a_reward_model_is_compared_too(tmp_path: Path) -> None:
    loading.save(tiny_reward(tiny_tokenizer()), tiny_tokenizer(), tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    setting = "publish.reward_repo_id"
    target = Target(
        setting, str(tmp_path / "there"), True, "main", [], "reward_model", "AutoModelForSequenceClassification"
    )
    repository.load(HfApi(), Pushed(target, tmp_path / "here", [], "main", True, "main"), str(tmp_path))


@pytest.mark.slow
def test_a_reward_model_whose_weights_lack_the_score_fails_the_check(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "runs" / RUN / "reward_model"
    shutil.copytree(
        model_files.EMBEDDED_DIR, folder
    )  # a language model: transformers would fill the score with random numbers
    (tmp_path / "outputs" / "latest").symlink_to(Path("runs", RUN))
    with pytest.raises(UserError, match=r"was pushed, but the check of it failed: .* its weights lack score\.weight"):
        publish.push(
            finished_run.planned([f"output_dir={tmp_path / 'outputs'}", f"publish.reward_repo_id={REPO}"]), HASTE
        )


@pytest.mark.parametrize("name", ["judge", "evaluate", "sft"])
@pytest.mark.parametrize("damage", ["lost", "cut", "null"])
def test_a_run_with_a_lost_or_damaged_stage_is_refused_before_its_card_is_written_again(
    evaluated: Path, name: str, damage: str
) -> None:
    manifest = evaluated / name / "manifest.json"
    if damage == "lost":
        shutil.rmtree(manifest.parent.resolve())
    else:
        manifest.write_text("null" if damage == "null" else manifest.read_text()[:50])
    with pytest.raises(UserError, match="latest: there is no finished model, or a stage of it is lost or damaged"):
        publish.main(finished_run.planned([f"output_dir={evaluated.parent}", "publish.dry_run=true"]), HASTE)


@pytest.mark.parametrize("names", [["a b.bin", "c(1).bin"], ["a[1].txt", "it's.md"], ["k=v,w.txt", "naïve.md"]])
def test_the_override_that_is_offered_keeps_the_files(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str], names: list[str]
) -> None:
    repository = hub.repositories[REPO] = new_repository(REPO, is_private=True)
    first = repository.commit("main", "by hand", {name: Blob(b"old", is_lfs=False) for name in names})
    push(f"publish.repo_id={REPO}")
    (offered,) = re.findall(r"still has it, and (.*) would keep it", capfd.readouterr().out)
    repository.branches["main"] = first.sha
    push(f"publish.repo_id={REPO}", *shlex.split(offered))
    assert set(repository.history()[0].files) == {*PUSHED, *names}


def test_names_of_others_reach_the_terminal_without_control_characters(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    repository = hub.repositories[REPO] = new_repository(REPO, is_private=True)
    files = {name: Blob(b"old", is_lfs=False) for name in ("a\x1b[2J.txt", "README.md")}
    repository.commit("main", "Update \x1b]0;title\x07", files)
    push(f"publish.repo_id={REPO}")
    printed = capfd.readouterr().out
    assert "a\\x1b[2J.txt" in printed
    assert "(Update \\x1b]0;title\\x07)" in printed
    assert "\x1b" not in printed


def test_a_dry_run_lists_no_file_that_the_push_would_set_aside(
    hub: Hub, evaluated: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (evaluated / "model" / "notes.txt").write_text("mine")
    publish.main(finished_run.planned([f"output_dir={evaluated.parent}", "publish.dry_run=true"]), HASTE)
    assert "notes.txt" not in capfd.readouterr().out
