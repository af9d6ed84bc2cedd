"""Which values apply: those of the bundled model and data go with them, any other model gets those of the demo."""

import re
import shlex
from pathlib import Path

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = (5e-5, 1e-5, 1e-5)  # learning rates of SFT, reward model and PPO on the owner's card
TOY = (1e-3, 1e-3, 5e-4)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in re.split(r"\n| && ", block)
    if re.match(r"make (pipeline|config|data|sft|reward|judge|ppo|evaluate)\b", line)
]


def composed(*overrides: str) -> Settings:
    return compose.load(overrides).settings


def learning_rates(settings: Settings) -> tuple[float, ...]:
    return tuple(part.args["learning_rate"] for part in (settings.sft, settings.reward, settings.ppo))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=gpt2"],
        ["model=gpt2_random"],
        ["model.name=somebody/model"],
        ["model.name=./a_folder", "data.path=pairs.jsonl"],
        ["model=gpt2", "data=hh_rlhf", "data.path=pairs.jsonl"],
        ["experiment=gpt2_hh"],
        ["experiment=gpt2_hh_500", "model.name=somebody/model"],
        ["experiment=quickstart", "model=gpt2"],
    ],
)
def test_any_model_but_the_bundled_one_gets_the_values_of_the_demo(overrides: list[str]) -> None:
    settings = composed(*overrides)
    assert learning_rates(settings) == DEMO
    ppo = settings.ppo.args
    assert (ppo["response_length"], ppo["kl_coef"], ppo["cliprange"], ppo["temperature"]) == (64, 0.1, 0.2, 0.7)


@pytest.mark.parametrize(
    "overrides", [[], ["data.path=pairs.jsonl"], ["model=embedded"], ["experiment=gpt2_hh_500", "model=embedded"]]
)
def test_the_bundled_model_brings_its_values_whatever_the_data(overrides: list[str]) -> None:
    settings = composed(*overrides)
    assert learning_rates(settings) == TOY
    assert settings.ppo.args["response_length"] == 48
    assert settings.data.max_prompt_tokens + settings.data.max_answer_tokens < 512  # its positions


def test_a_model_named_by_itself_has_no_revision_of_another_model() -> None:
    for overrides in (["model.name=somebody/model"], ["experiment=gpt2_hh", "model.name=somebody/model"]):
        assert composed(*overrides).model.revision is None
    assert composed("model.name=somebody/model", "model.revision=abc").model.revision == "abc"
    with pytest.raises(UserError, match=r"model\.name: no value is set; set it with model\.name=<value>"):
        composed("model=own")


@pytest.mark.parametrize("overrides", [["data.path=pairs.jsonl"], ["model=gpt2", "data.path='my pairs.jsonl'"]])
def test_pairs_of_ones_own_get_neither_the_utility_nor_the_shares_of_the_bundled_data(overrides: list[str]) -> None:
    data = composed(*overrides).data
    assert data.utility is None
    assert not data.has_judge
    assert data.train_pairs == 1500


def test_the_classic_demo_gives_each_stage_500_prompts() -> None:
    for overrides in (["experiment=gpt2_hh_500"], ["model=gpt2", "data=hh_rlhf"]):
        data = composed(*overrides).data
        assert data.train_pairs is not None
        assert {name: round(share * data.train_pairs) for name, share in data.shares.items()} == {
            "sft": 500,
            "reward": 500,
            "judge": 0,
            "ppo": 500,
        }
        assert data.test_pairs == 500


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_trains_a_model_with_the_values_of_its_size(command: str) -> None:
    overrides = [text for text in shlex.split(command, comments=True)[2:] if "=" in text]
    settings = composed(*overrides)
    changed = {text.partition("=")[0] for text in overrides}
    expected = TOY if settings.model.name == "embedded" else DEMO
    if not any("learning_rate" in key for key in changed) and "experiment=overoptimised" not in overrides:
        assert learning_rates(settings) == expected


def test_the_pages_have_commands_to_check() -> None:
    assert len(COMMANDS) >= 10
