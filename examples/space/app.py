"""A page on the Hub on which visitors talk to published models: the page of `make chat chat.web=true`."""

from gpt2_rlhf.config import compose
from gpt2_rlhf.rows import feedback, feedback_page

MODELS = ["chat.models.ppo=user/name", "chat.models.reward=user/name-reward"]  # publish.repo_id, publish.reward_repo_id

settings = compose.load(MODELS).settings
page = feedback_page.build(feedback.start(settings), settings)
page.launch()
