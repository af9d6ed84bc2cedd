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
    values = OmegaConf.create(composed.yaml)
    assert tuple(OmegaConf.select(values, key) for key in TEXTS) == typed
    assert composed.overrides == tuple(sorted(overrides))


def test_quotes_null_and_interpolations_of_a_text_keep_their_meaning() -> None:
    typed = ("'a b'", '"a,b"', "${seed}", "null", "it's ${seed}", "'it\\'s'")
    values = OmegaConf.create(compose.load([f"{key}={text}" for key, text in zip(TEXTS, typed, strict=True)]).yaml)
    assert [OmegaConf.select(values, key) for key in TEXTS] == ["a b", "a,b", "0", None, "it's 0", "it's"]


def test_lists_spaces_and_interpolations_survive() -> None:
    settings = compose.load(["data.subsets=[a, 'b c']", "sft.args.run_name=${model.name} at ${seed}"]).settings
    assert settings.data.subsets == ["a", "b c"]
    assert settings.sft.args["run_name"] == "embedded at 0"


def test_the_yaml_has_what_is_set_and_nothing_else() -> None:
    text = compose.load(["seed=7"]).yaml
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
        ("ppo.args.kl_coef=high", "ppo.args.kl_coef: Value 'high'"),
        ("sft.peft.r=1.5", "sft.peft.r: Value '1.5'"),
        ("seed=one", "seed: Value 'one'"),
        ("ppo.args.kl_estimator=k2", "expected one of k1, k3"),
        ("sft.args.lr_scheduler_type=cosin", "did you mean cosine?"),
        ("sft.args.output_dir=x", "set here: stages are named by content"),
        ("ppo.args.label_smoothing_factor=0.1", "PPO does nothing with it"),
        ("~model", "model.name: no value is set"),
        ("ppo.args={", "not an override; expected key=value"),
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


def test_overrides_are_ordered_by_key_and_the_later_of_two_stays_the_later() -> None:
    typed = ["seed=1", "ppo.args.kl_coef=0.2", "seed=0"]
    assert list(compose.load(typed).overrides) == ["ppo.args.kl_coef=0.2", "seed=1", "seed=0"]
