import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gpt2_rlhf.config import compose, preflight, trl_fields
from gpt2_rlhf.config.errors import UserError
from helpers.overrides import changed


def test_every_setting_with_a_range_exists() -> None:
    values = dataclasses.asdict(compose.load([]).settings)
    for _, _, keys in preflight.RANGES:
        for key in keys:
            node: Any = values
            *parents, name = key.split(".")
            for parent in parents:
                node = node[parent]
            assert name in (trl_fields.fields(parents[0]) if parents[-1:] == ["args"] else node), key


@pytest.mark.parametrize("experiment", compose.groups()["experiment"])
def test_every_experiment_passes(experiment: str) -> None:
    settings = compose.load([f"experiment={experiment}"]).settings
    preflight.check(settings)
    preflight.check_lengths(settings, 512 if settings.model.name == "embedded" else 1024)
    assert settings.data.max_prompt_tokens > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.shares.sft=0.9"], "data.shares: .*sum to at most 1"),
        (["data.shares.ppo=0"], "data.shares: .*above 0"),
        (["data.shares.judge=-0.1"], "data.shares: .*judge: 0 or more"),
        (["ppo.args.kl_coef=nan"], "ppo.args.kl_coef: nan; expected a finite number"),
        (["sft.args.weight_decay=inf"], "sft.args.weight_decay: inf; expected a finite number"),
        (["ppo.args.kl_coef=-0.1"], "ppo.args.kl_coef: -0.1; expected a number of 0 or more"),
        (["output_dir="], "output_dir: no value; expected a name or a path"),
        (["model.name="], "model.name: no value; expected a name or a path"),
        (["sft.args.max_steps=0"], "sft.args.max_steps: 0; expected a number above 0, or -1 to count epochs"),
        (["ppo.args.missing_eos_penalty=-1"], "ppo.args.missing_eos_penalty: -1.0; expected a number of 0 or more"),
        (["evaluate.best_of=0"], "evaluate.best_of: 0; expected a whole number from 1 to 1024"),
        (["data.seed=-1"], "data.seed: -1; expected a whole number from 0"),  # Python draws the same with 1
        (["evaluate.seed=-1"], "evaluate.seed: -1; expected a whole number from 0"),
        (["ppo.seeds=[4294967296]"], "ppo.seeds: .*; expected different whole numbers from 0 to 4294967295"),
        (["sft.args.weight_decay=-5"], "sft.args.weight_decay: -5.0; expected a number of 0 or more"),
        (["reward.args.max_grad_norm=-1"], "reward.args.max_grad_norm: -1.0; expected a number of 0 or more"),
        (["ppo.args.adam_beta1=2"], "ppo.args.adam_beta1: 2.0; expected a number of 0 or more and below 1"),
        (["sft.args.save_steps=0"], "sft.args.save_steps: 0.0; expected a number above 0"),
        (["sft.args.dataloader_num_workers=-1"], "sft.args.dataloader_num_workers: -1; expected a number of 0 or more"),
        (["card.year=-5"], "card.year: -5; expected a year such as 2026"),
        (["card.author="], "card.author: no value; expected a name, or null for no citation"),
        (["card.license="], "card.license: no value; expected a license from the Hub's list, such as mit"),
        (["reward.args.learning_rate=0"], "reward.args.learning_rate: 0.0; expected a number above 0"),
        (["ppo.guard.max_kl_nats=0"], "ppo.guard.max_kl_nats: 0.0; expected a number above 0"),
        (["ppo.guard.max_length_ratio=1"], "ppo.guard.max_length_ratio: 1.0; expected a number above 1"),
        (["ppo.guard.min_eos_rate=1.5"], "ppo.guard.min_eos_rate: 1.5; expected a number from 0 to 1"),
        (["ppo.guard.min_distinct_2=-1"], "ppo.guard.min_distinct_2: -1.0; expected a number from 0 to 1"),
        (["seed=4294967296"], "seed: 4294967296; expected a whole number"),
        (["ppo.seeds=[]"], "ppo.seeds: .*; expected different whole numbers"),
        (["ppo.seeds=[1,1]"], "ppo.seeds: .*; expected different whole numbers"),
        (["ppo.seeds=[-1]"], "ppo.seeds: .*; expected different whole numbers"),
        (["ppo.rollout_cache=paged"], "ppo.rollout_cache: paged; expected static, compiled or null"),
        (["ppo.heldout.best_by=luck"], "ppo.heldout.best_by: luck; expected reward, judge, utility or null"),
        (["ppo.heldout.hand_on=first"], "ppo.heldout.hand_on: first; expected last or best"),
        (["ppo.heldout.hand_on=best", "ppo.args.eval_strategy=no"], "ppo.heldout.hand_on: best, but .*nothing is"),
        (["ppo.heldout.best_by=judge", "data.shares.judge=0"], "ppo.heldout.best_by: judge, but no judge is trained"),
        (["ppo.heldout.best_by=utility", "data.utility=null"], "ppo.heldout.best_by: utility, but it is unknown"),
    ],
)
def test_a_value_that_no_run_could_use_is_refused(overrides: list[str], message: str) -> None:
    settings = compose.load(overrides).settings
    with pytest.raises(UserError, match=message) as caught:
        preflight.check(settings)
    assert "\n" not in str(caught.value)


PPO_FAULTS = [
    ["ppo.args.temperature=0"],
    ["ppo.seeds=[1,1]"],
    ["ppo.heldout.hand_on=best", "ppo.args.eval_strategy=no"],
    ["evaluate.best_of=0"],
]


@pytest.mark.parametrize("overrides", PPO_FAULTS)
def test_a_stage_alone_is_not_refused_for_settings_of_later_stages(overrides: list[str]) -> None:
    settings = compose.load(overrides).settings
    for last in ("data", "sft", "reward", "judge"):
        preflight.check(settings, last)
    with pytest.raises(UserError):
        preflight.check(settings, "evaluate")


@pytest.mark.parametrize("override", ["data.disjoint=false", "data.shares.judge=0"])
def test_the_judge_alone_is_refused_where_none_is_trained(override: str) -> None:
    with pytest.raises(UserError, match=r"judge: these settings have none; expected data\.disjoint=true"):
        preflight.check(compose.load([override]).settings, "judge")


def test_a_stage_alone_is_still_refused_for_its_own_settings() -> None:
    with pytest.raises(UserError, match=r"reward\.args\.learning_rate"):
        preflight.check(compose.load(["reward.args.learning_rate=0"]).settings, "reward")
    for key in ("evaluate.batch_size", "evaluate.pairs"):
        with pytest.raises(UserError, match=key):
            preflight.check(compose.load([f"{key}=0"]).settings, "sft")


def test_a_stage_alone_needs_no_room_for_the_answers_of_later_stages() -> None:
    settings = compose.load(["ppo.args.response_length=400"]).settings
    preflight.check_lengths(settings, 512, "reward")
    with pytest.raises(UserError, match=r"ppo\.args\.response_length"):
        preflight.check_lengths(settings, 512, "ppo")


@pytest.mark.parametrize(
    ("key", "last"), [("ppo.args.response_length", "ppo"), ("evaluate.max_new_tokens", "evaluate")]
)
def test_an_answer_that_is_cut_leaves_a_position_for_the_eos_that_it_is_scored_with(key: str, last: str) -> None:
    prompt_tokens = compose.load([]).settings.data.max_prompt_tokens
    room = 512 - prompt_tokens
    preflight.check_lengths(compose.load([f"{key}={room - 1}"]).settings, 512, last)
    with pytest.raises(UserError, match=f"{key}: {prompt_tokens} prompt tokens .* and {room + 1} answer tokens"):
        preflight.check_lengths(compose.load([f"{key}={room}"]).settings, 512, last)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_an_engine_that_ppo_cannot_train_with_is_refused_before_sft(tmp_path: Path, engine: str) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: {engine}\n")
    settings = compose.load(["launch=accelerate", f"launch.accelerate_config={file}"]).settings
    preflight.check(settings, "reward")
    with pytest.raises(UserError, match=f"{engine}: PPO does not train with it; launch=fsdp"):
        preflight.check(settings, "ppo")


def test_an_engine_of_the_command_that_started_this_process_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = compose.load([]).settings
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    preflight.check(settings, "data")
    with pytest.raises(UserError, match=r"accelerate launch: FSDP: .* shard with launch\.sharded=true"):
        preflight.check(settings, "sft")


def test_sharding_needs_several_processes_and_no_loss_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check(compose.load(["launch=fsdp", "ppo.args.fp16=true"]).settings, "reward")
    with pytest.raises(UserError, match=r"ppo\.args\.fp16: true: .* set ppo\.args\.bf16=true"):
        preflight.check(compose.load(["launch=fsdp", "ppo.args.fp16=true"]).settings)
    with pytest.raises(UserError, match=r"launch\.sharded: true, but one process trains"):
        preflight.check(compose.load(["launch=fsdp", "launch.processes=1"]).settings)
    monkeypatch.setenv("WORLD_SIZE", "1")  # as a launcher tells
    with pytest.raises(UserError, match=r"launch\.sharded: true, but one process trains"):
        preflight.check(compose.load(["launch=fsdp"]).settings)


@pytest.mark.parametrize("text", [None, "", "- a list", "{", "num_processes: 2"])
def test_a_launcher_file_that_accelerate_cannot_use_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "accelerate.yaml"
    if text is not None:
        file.write_text(text)
    settings = compose.load(["launch=accelerate", f"launch.accelerate_config={file}"]).settings
    with pytest.raises(UserError, match=r"accelerate\.yaml: cannot be read .*`accelerate config"):
        preflight.check(settings, "sft")


def test_a_launcher_file_for_one_process_is_refused_since_nothing_would_read_it(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text("distributed_type: MULTI_CPU\n")
    overrides = ["launch=accelerate", f"launch.accelerate_config={file}"]
    preflight.check(compose.load(overrides).settings)
    with pytest.raises(UserError, match="not used by one process"):
        preflight.check(compose.load([*overrides, "launch.processes=1"]).settings)


def test_a_setting_of_another_method_is_refused_since_it_would_have_no_effect() -> None:
    with pytest.raises(UserError, match=r"dpo\.args\.beta: method=rloo does not read it; set method=dpo"):
        preflight.check_overrides(["seed=1", "dpo.args.beta=0.2"], "rloo")
    preflight.check_overrides(["ppo.seeds=[1]", "dpo.args.beta=0.2"], "dpo")


def test_a_stage_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match="method: dpo, with which no ppo stage is built; expected method=ppo"):
        preflight.check(compose.load(["method=dpo"]).settings, "ppo")


def test_what_a_method_does_not_read_is_not_refused() -> None:
    settings = compose.load([]).settings
    preflight.check(changed(settings, "method=dpo", "rloo.args.learning_rate=-1", "ppo.args.kl_coef=-1"))
    with pytest.raises(UserError, match=r"ppo\.args\.kl_coef"):  # RLOO has the reward and the prompts of PPO
        preflight.check(changed(settings, "method=rloo", "ppo.args.kl_coef=-1"))
    with pytest.raises(UserError, match="method: none; expected ppo, rloo or dpo"):
        preflight.check(changed(settings, "method=none"))
