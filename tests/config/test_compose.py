import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from trl.experimental.ppo import PPOConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError

EXPERIMENTS = sorted(f.stem for f in (compose.CONF_DIR / "experiment").glob("*.yaml"))


def test_there_are_four_experiments() -> None:
    assert EXPERIMENTS == ["gpt2_hh", "gpt2_hh_500", "overoptimised", "quickstart"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_makes_arguments_that_trl_accepts(experiment: str, tmp_path: Path) -> None:
    settings = compose.load([f"experiment={experiment}"]).settings
    for kind, part in ((SFTConfig, settings.sft), (RewardConfig, settings.reward), (PPOConfig, settings.ppo)):
        kind(**part.args, output_dir=str(tmp_path), use_cpu=True)


def test_the_defaults_are_those_of_the_classic_demo() -> None:
    settings = compose.load(["experiment=gpt2_hh_500"]).settings
    assert settings.model.name == "openai-community/gpt2"
    assert settings.data.name == "Anthropic/hh-rlhf"
    assert settings.data.train_pairs == 1500  # 500 for each of SFT, reward model and PPO
    assert settings.sft.args["learning_rate"] == 5e-5
    assert settings.reward.args["learning_rate"] == 1e-5
    ppo = settings.ppo.args
    assert (ppo["learning_rate"], ppo["kl_coef"], ppo["cliprange"]) == (1e-5, 0.1, 0.2)


def test_quickstart_runs_without_overrides() -> None:
    assert compose.load([]).settings == compose.load(["experiment=quickstart"]).settings
    assert compose.load([]).settings.model.name == "embedded"


def test_an_override_wins_over_the_experiment_and_a_group_over_its_choice() -> None:
    settings = compose.load(["experiment=quickstart", "data=hh_rlhf", "ppo.args.kl_coef=0.7"]).settings
    assert settings.data.name == "Anthropic/hh-rlhf"
    assert settings.ppo.args["kl_coef"] == 0.7
    assert settings.model.name == "embedded"


def test_any_argument_of_trl_can_be_set_without_a_plus() -> None:
    assert compose.load(["sft.args.weight_decay=0.1"]).settings.sft.args["weight_decay"] == 0.1


def test_only_what_is_set_reaches_trl() -> None:
    assert "weight_decay" not in compose.load([]).settings.sft.args


TEXTS = ("data.path", "card.author", "output_dir", "model.tokenizer", "publish.repo_id", "publish.revision")


@pytest.mark.parametrize(
    "typed",
    [
        ("/données/paires.jsonl", "日本/a.jsonl", "pairs [v2].jsonl", "[v2]", "{v2}", "pairs (1).jsonl"),
        ("it's mine.jsonl", "it's.jsonl\\", "back\\'slash", "c:\\pairs\\new.jsonl", "a,b.jsonl", "a=b.jsonl"),
        ("~/pairs #1 & more!.jsonl", "choice(a)", "1e5", "007", "true", 'a "b" c'),
    ],
)
def test_a_text_is_taken_as_it_is_typed(typed: tuple[str, ...]) -> None:
    overrides = [f"{key}={text}" for key, text in zip(TEXTS, typed, strict=True)]
    composed = compose.load(overrides)
    values = OmegaConf.create(compose.yaml(composed.values))
    assert tuple(OmegaConf.select(values, key) for key in TEXTS) == typed
    assert composed.overrides == tuple(sorted(overrides))


def test_quotes_null_and_interpolations_of_a_text_keep_their_meaning() -> None:
    typed = ("'a b'", '"a,b"', "${seed}", "null", "it's ${seed}", "'it\\'s'")
    values = compose.load([f"{key}={text}" for key, text in zip(TEXTS, typed, strict=True)]).values
    written = OmegaConf.create(compose.yaml(values))
    assert [OmegaConf.select(written, key) for key in TEXTS] == ["a b", "a,b", "0", None, "it's 0", "it's"]


def test_lists_spaces_and_interpolations_survive() -> None:
    settings = compose.load(["data.subsets=[a, 'b c']", "sft.args.run_name=${model.name} at ${seed}"]).settings
    assert settings.data.subsets == ["a", "b c"]
    assert settings.sft.args["run_name"] == "embedded at 0"


def test_the_yaml_has_what_is_set_and_nothing_else() -> None:
    text = compose.yaml(compose.load(["seed=7"]).values)
    assert "seed: 7\n" in text
    assert "???" not in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.args.kl_coeff=0.2", "did you mean ppo.args.kl_coef?"),
        ("+ppo.args.kl_coeff=0.2", "did you mean ppo.args.kl_coef?"),
        ("ppo.kl_coef=0.2", "did you mean ppo.args.kl_coef?"),
        ("++anything=1", "anything: there is no such setting"),
        ("modle=gpt2", "did you mean model?"),
        ("model=gtp2", "did you mean gpt2?"),
        ("ppo.args.kl_coef=high", "ppo.args.kl_coef: high; expected a number"),
        ("sft.peft.r=1.5", "sft.peft.r: 1.5; expected a whole number"),
        ("seed=one", "seed: one; expected a whole number"),
        ("ppo.args.kl_estimator=k2", "expected one of k1, k3"),
        ("sft.args.lr_scheduler_type=cosin", "did you mean cosine, cosine_with_restarts"),
        ("sft.args.output_dir=x", "set here: stages are named by content"),
        ("ppo.args.label_smoothing_factor=0.1", "PPO does nothing with it"),
        ("~model", "model.name: no value is set"),
        ("ppo.args={", "ppo.args: { cannot be read; expected a value for one of its settings"),
        ("seed==3", "seed: =3 cannot be read; expected a whole number"),
        (
            "ppo.seeds=(0,1)",
            "ppo.seeds: (0,1) cannot be read; expected null or a list of whole numbers, such as [1, 2]",
        ),
        ("ppo.seeds=3", "ppo.seeds: 3; expected null or a list of whole numbers, such as [1, 2]"),
        ("ppo.seeds=[0,one]", "ppo.seeds: [0, 'one']; expected null or a list of whole numbers"),
        ("ppo.seeds=0,1", "several values; expected one (a list has brackets: [0,1]), or `make sweep`"),
        ("data.subsets=helpful-base", "data.subsets: helpful-base; expected null or a list of texts, such as [a, b]"),
        ("data.train_pairs=1,000", "expected one (a whole number has no comma: 1000), or `make sweep`"),
        ("data.train_pairs=0.5", "data.train_pairs: 0.5; expected a whole number or null"),
        ("evaluate.prompts=null", "evaluate.prompts: null; expected a whole number"),
        ("force=maybe", "force: maybe; expected true or false"),
        ("ppo.args.kl_coef=", "ppo.args.kl_coef: no value; expected a number"),
        ("data.shares=0.5", "data.shares: 0.5; expected numbers by name, such as {a: 0.5}"),
        ("data.shares.judge=no", "data.shares.judge: no; expected a number"),
        ("data.shares.rm=0.3", "data.shares.rm: there is no such setting; expected one of sft, reward, judge, ppo"),
        ("ppo.kl=0.1", "ppo.kl: 0.1; expected a value for one of its settings, such as ppo.kl.target_nats or"),
        ("kl_coef=0,2", "kl_coef: there is no such setting; did you mean ppo.args.kl_coef?"),
        ("hydra.run.dir=x", "hydra.run.dir: there is no such setting"),
        ("experiment=null", "experiment: there is no 'null'; expected one of gpt2_hh, "),
        ("experiment=[quickstart,null]", "experiment: there is no '[quickstart,null]'; did you mean quickstart?"),
        (
            "launch.slurm.time=1:00",
            "time: launch.slurm has no value; set launch.slurm as a whole, or choose another option of launch",
        ),
        ("ppo.seeds.0=5", "ppo.seeds.0: ppo.seeds has no value; set ppo.seeds as a whole"),
        ("ppo={nope: 1}", "ppo.nope: there is no such setting"),
        ("sft.args=???", "sft.args: no value is set"),
        ("--until=ppo", "--until=ppo: there is no such option; settings are key=value"),
        ("seed", "seed: no value; expected key=value, without spaces"),
        ("=3", "=3: no value; expected key=value, without spaces"),
        ("model=gpt2-medium", "expected one of embedded, gpt2, gpt2_random, own, or model.name=<folder or Hub name>"),
        ("data=my.jsonl", "or data.path=<file or folder>, or data.name=<Hub dataset>"),
        ("sft.args.optim=adam", "did you mean adamw_torch, adamw_torch_fused or"),
        ("ppo.args.kl_coef=0,2", "several values; expected one (a decimal number has a point: 0.2), or `make sweep`"),
        ("sft.args.run_name=${nothing.there}", "nothing.there"),
        ("launch=accelerate", "launch.accelerate_config: no value is set"),
    ],
)
def test_a_faulty_override_is_refused_in_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        compose.load([override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_replaces_a_value_that_cannot_be_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(compose.CONF_DIR, tmp_path / "conf")
    mine = "# @package _global_\noutput_dir: ${oc.env:NOT_SET}/x\n"
    (tmp_path / "conf" / "personal").mkdir(exist_ok=True)
    (tmp_path / "conf" / "personal" / "mine.yaml").write_text(mine)
    monkeypatch.setattr(compose, "CONF_DIR", tmp_path / "conf")
    assert compose.load(["output_dir=y"]).settings.output_dir == "y"
    with pytest.raises(UserError, match="NOT_SET"):
        compose.load([])


def test_a_mapping_replaces_null_and_adds_to_another_mapping() -> None:
    assert compose.load(["model=own", "model.name=x", "model.random={n_layer: 2}"]).settings.model.random == {
        "n_layer": 2
    }
    assert compose.load(["ppo={seeds: [1], args: {kl_coef: 0.3}}"]).settings.ppo.seeds == [1]
    shares = compose.load(["data.shares={judge: 0}"]).settings.data.shares
    assert shares == compose.load([]).settings.data.shares | {"judge": 0}


@pytest.mark.parametrize(
    ("key", "end"),
    [
        ("sft.args.lr", "did you mean sft.args.learning_rate?"),  # not tf32, which is spelt more alike
        ("sft.lr", "did you mean sft.args.learning_rate?"),
        ("ppo.args.kl", "did you mean ppo.args.kl_coef or ppo.args.kl_estimator?"),
        ("reward.args.epochs", "did you mean reward.args.num_train_epochs?"),
        ("sft.args.batch_size", "did you mean sft.args.per_device_train_batch_size?"),  # not auto_find_batch_size
        ("sft.lora.r", "did you mean sft.peft.r?"),
        ("sft.peft.rank", "expected one of sft.peft.r, sft.peft.lora_alpha, "),
        ("evaluate.n", "expected one of evaluate.prompts, "),
        ("cliprange", "did you mean ppo.args.cliprange or ppo.args.cliprange_value?"),
        ("guard", "did you mean ppo.guard.enabled, "),
        ("out_dir", "did you mean output_dir?"),
        ("sft.args.weight_dekay", "did you mean sft.args.weight_decay?"),
        ("sft.args.torch_compyle", "did you mean sft.args.torch_compile?"),  # one that few set
        ("gpus", "`make config` shows what is set"),
    ],
)
def test_a_setting_that_does_not_exist_is_answered_with_the_one_that_is_meant(key: str, end: str) -> None:
    with pytest.raises(UserError) as caught:
        compose.load([f"{key}=1"])
    assert str(caught.value).startswith(f"{key}: there is no such setting; {end}")


def test_a_whole_number_may_be_typed_with_an_exponent_and_a_setting_with_a_plus() -> None:
    settings = compose.load(["data.train_pairs=1e4", "+seed=3"]).settings
    assert (settings.data.train_pairs, settings.seed) == (10_000, 3)
    assert type(settings.data.train_pairs) is int


def test_overrides_are_ordered_by_key_and_the_later_of_two_stays_the_later() -> None:
    typed = ["seed=1", "ppo.args.kl_coef=0.2", "seed=0"]
    assert list(compose.load(typed).overrides) == ["ppo.args.kl_coef=0.2", "seed=1", "seed=0"]
