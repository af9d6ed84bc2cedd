"""A base model on the Hub: fetched and checked before the first stage, with the real client and a local hub."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
from huggingface_hub import constants

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import loading, model_checks, model_files, tokens
from helpers.local_hub import in_process
from helpers.local_hub.faults import Fault
from helpers.local_hub.server import Hub
from helpers.local_hub.store import Blob, Repository, new_repository

REPO = "owner/base"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with in_process.hub(tmp_path / "cache", monkeypatch) as running:
        yield running


@pytest.fixture
def repository(hub: Hub) -> Repository:
    made = hub.repositories[REPO] = new_repository(REPO, is_private=False)
    files = {name: (model_files.EMBEDDED_DIR / name).read_bytes() for name in FILES}
    made.commit("main", "model", {name: Blob(body, name.endswith(".safetensors")) for name, body in files.items()})
    hub.store_object(files["model.safetensors"])
    return made


def model(repository: Repository) -> Model:
    return Model(REPO, repository.branches["main"], None, None)


def test_all_that_the_stages_load_is_there_after_the_check_and_they_make_no_request(
    hub: Hub, repository: Repository
) -> None:
    checked = model_checks.check(model(repository))
    assert checked["n_positions"] == 512
    hub.log.clear()
    model_checks.check(model(repository))
    model_checks.require_whole_weights(model(repository))
    policy, tokenizer = loading.load_base(model(repository), 0), tokens.load_base_tokenizer(model(repository), None)
    assert policy.num_parameters() == loading.load_policy(str(model_files.EMBEDDED_DIR)).num_parameters()
    assert len(tokenizer) == 1536
    assert hub.log == []


def test_the_rows_alone_need_no_weights(hub: Hub, repository: Repository) -> None:
    model_checks.check(model(repository), "data")
    assert hub.calls("storage") == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("storage", "status", times=99, status=500), "the Hub answered 500"),
        (Fault("storage", "status", times=99, status=401), "the Hub answered 401 .*; check your token"),
        (Fault("storage", "truncate", times=99), "the Hub cannot be reached"),
        (Fault("storage", "reset", times=99), r"the Hub cannot be reached for owner/base"),
        (Fault("resolve", "status", times=99, status=503), "the Hub answered 503"),
        (Fault("resolve", "status", times=99, status=429), "the Hub answered 429"),
        (Fault("resolve", "status", times=99, status=401), "the Hub answered 401 .*; check your token"),
        (Fault("info", "status", times=99, status=503), "the Hub answered 503"),
    ],
    ids=lambda value: f"{value.call}-{value.kind}-{value.status}" if isinstance(value, Fault) else "",
)
def test_a_hub_that_fails_while_the_model_is_fetched_is_one_line_without_a_signed_address(
    hub: Hub, repository: Repository, fault: Fault, words: str
) -> None:
    hub.fail(fault)
    with pytest.raises(UserError, match=rf"^model\.name: {words}") as caught:
        model_checks.check(model(repository))
    assert "\n" not in str(caught.value)
    assert "signed-secret" not in str(caught.value)


def test_weights_in_another_format_than_safetensors_are_named(hub: Hub, repository: Repository) -> None:
    repository.commit("main", "old", {"pytorch_model.bin": Blob(b"x", True)}, {"model.safetensors"})
    with pytest.raises(UserError, match=r"owner/base has neither model\.safetensors nor .*; save it in that format"):
        model_checks.check(model(repository))


def test_a_branch_is_refused_with_its_newest_commit_as_it_is_for_data(hub: Hub, repository: Repository) -> None:
    newest = repository.branches["main"]
    for revision in ("main", None, newest[:7]):
        repository.tags[newest[:7]] = newest
        with pytest.raises(UserError, match=rf"model\.revision: {revision}; expected a commit .*revision={newest}$"):
            model_checks.check(Model(REPO, revision, None, None))


def test_a_tokenizer_of_another_repository_has_a_commit_of_its_own(hub: Hub, repository: Repository) -> None:
    other = hub.repositories["owner/tokens"] = new_repository("owner/tokens", is_private=False)
    files = {name: Blob((model_files.EMBEDDED_DIR / name).read_bytes(), False) for name in FILES if "tokenizer" in name}
    newest = other.commit("main", "tokenizer", files).sha
    mixed = Model(REPO, repository.branches["main"], f"owner/tokens@{newest}", None)
    model_checks.check(mixed)
    assert len(tokens.load_base_tokenizer(mixed, None)) == 1536
    with pytest.raises(UserError, match=rf"its newest is model\.tokenizer=owner/tokens@{newest}$"):
        model_checks.check(Model(REPO, repository.branches["main"], "owner/tokens@main", None))


def test_a_model_needs_no_tokenizer_where_another_repository_has_it(hub: Hub, repository: Repository) -> None:
    other = hub.repositories["owner/tokens"] = new_repository("owner/tokens", is_private=False)
    files = {name: Blob((model_files.EMBEDDED_DIR / name).read_bytes(), False) for name in FILES if "tokenizer" in name}
    commit = other.commit("main", "tokenizer", files).sha
    repository.commit("main", "no tokenizer", {}, set(files))
    mixed = Model(REPO, repository.branches["main"], f"owner/tokens@{commit}", None)
    model_checks.check(mixed)
    assert loading.load_base(mixed, 0).config.vocab_size == len(tokens.load_base_tokenizer(mixed, None))


def test_without_a_hub_weights_in_several_files_are_enough(
    hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = safetensors.torch.load_file(model_files.EMBEDDED_DIR / "model.safetensors")
    shard_of = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    files = {"model.safetensors.index.json": Blob(json.dumps({"weight_map": shard_of}).encode(), False)}
    for shard in set(shard_of.values()):
        body = safetensors.torch.save({name: weights[name] for name in weights if shard_of[name] == shard})
        files[shard] = Blob(body, True)
        hub.store_object(body)
    repository.commit("main", "shards", files, {"model.safetensors"})
    for name in ("config.json", "tokenizer.json", *files):
        huggingface_hub.hf_hub_download(REPO, name, revision=repository.branches["main"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    model_checks.check(model(repository))


def test_without_a_hub_a_model_that_transformers_downloaded_is_enough(
    hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        huggingface_hub.hf_hub_download(REPO, name, revision=repository.branches["main"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    model_checks.check(model(repository))
    cache = Path(constants.HF_HUB_CACHE)
    (next(cache.rglob("model.safetensors"))).unlink()
    with pytest.raises(UserError, match="owner/base is not downloaded and HF_HUB_OFFLINE is set"):
        model_checks.check(model(repository))


def test_a_cache_that_cannot_be_written_is_one_line(
    hub: Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*which can be written to$"):
        model_checks.check(model(repository))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_damaged_file_of_the_cache_is_named_with_the_command_that_heals_it(
    hub: Hub, repository: Repository, name: str
) -> None:
    model_checks.check(model(repository))
    cache = Path(constants.HF_HUB_CACHE)
    blob = next(cache.rglob(name)).resolve()
    content = bytearray(blob.read_bytes())
    content[-9] ^= 1
    blob.write_bytes(content)
    check = model_checks.require_whole_weights if name == "model.safetensors" else model_checks.check
    with pytest.raises(UserError) as caught:
        check(model(repository))
    assert str(caught.value) == (
        f"model.name: {name} is damaged in the cache of the Hub; rm {blob}   and run this again"
    )
    blob.unlink()
    model_checks.check(model(repository))
    model_checks.require_whole_weights(model(repository))


def test_a_base_model_damaged_since_sft_was_trained_is_not_evaluated(hub: Hub, repository: Repository) -> None:
    model_checks.check(model(repository))
    blob = next(Path(constants.HF_HUB_CACHE).rglob("model.safetensors")).resolve()
    content = bytearray(blob.read_bytes())
    content[-9] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged in the cache of the Hub; rm "):
        loading.load_base(model(repository), 0)


def test_a_cut_file_of_weights_in_the_cache_is_named_before_any_stage(hub: Hub, repository: Repository) -> None:
    model_checks.check(model(repository))
    blob = next(Path(constants.HF_HUB_CACHE).rglob("model.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged in the cache of the Hub; rm "):
        model_checks.check(model(repository))


def test_a_folder_of_the_user_is_not_taken_for_a_cache(tmp_path: Path) -> None:
    shutil.copytree(model_files.EMBEDDED_DIR, tmp_path / "blobs")
    model_checks.check(Model(str(tmp_path / "blobs"), None, None, None))
