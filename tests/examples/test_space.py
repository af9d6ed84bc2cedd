"""The recipe for a Space in examples/space, as far as it can be run without the Hub."""

import re
import runpy
from importlib.metadata import version
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from huggingface_hub import SpaceCard

from gpt2_rlhf.models import loading, model_files, tokens
from helpers import chat_run

REPOSITORY = Path(__file__).parents[2]
SPACE = REPOSITORY / "examples" / "space"
(PINNED_GRADIO,) = (one for one in (REPOSITORY / "constraints.txt").read_text().split() if one.startswith("gradio=="))
APP = (SPACE / "app.py").read_text(encoding="utf-8")


def test_its_app_launches_the_page_of_the_chat_with_the_models_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2_rlhf.rows import feedback_page  # here, since every worker of pytest would wait for Gradio's import

    policy, reward = model_files.EMBEDDED_DIR, tmp_path / "reward"
    loading.save(chat_run.reward_model(0), tokens.load_tokenizer(str(policy), None), reward)
    app = tmp_path / "app.py"
    app.write_text(APP.replace("user/name-reward", str(reward)).replace("user/name", str(policy)), encoding="utf-8")
    build = create_autospec(feedback_page.build)  # refuses other arguments; a page leaves an event loop open
    monkeypatch.setattr(feedback_page, "build", build)
    runpy.run_path(str(app))
    build.return_value.launch.assert_called_once_with()
    conversation = build.call_args.args[0]
    assert (list(conversation.models.policies), list(conversation.models.scorers)) == (["ppo"], ["reward"])


def test_its_files_name_the_pinned_gradio_this_version_and_the_same_models() -> None:
    card = SpaceCard.load(SPACE / "README.md").data.to_dict()
    assert (card["sdk"], f"gradio=={card['sdk_version']}") == ("gradio", PINNED_GRADIO)
    assert card["models"] == re.findall(r"chat\.models\.\w+=([\w/-]+)", APP)
    for file in ("README.md", "requirements.txt"):
        assert f"/gpt2_rlhf-{version('gpt2-rlhf')}-py3-none-any.whl" in (SPACE / file).read_text(encoding="utf-8")
