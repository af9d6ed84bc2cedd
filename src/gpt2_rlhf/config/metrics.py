"""Describe every metric that is printed, once: key, label, unit, decimals, and what better means.

The terminal, the report, the model cards with their front matter, the table of seeds, the plots and the progress line
read it here. To print a figure that the evaluation already computes, add its line here and change no other file.
"""

from dataclasses import dataclass
from typing import Literal

FORMATS = {"share": (100, 1, " %"), "seconds": (1, 1, " s"), "MiB": (1, 0, " MiB")}  # by unit: factor, decimals, suffix
OTHER_FORMAT = (1, 2, "")
_UNITS_IN_CELLS = ("points", "count", *FORMATS)  # the others are part of the label


@dataclass(frozen=True)
class Metric:
    """A figure of a table.

    key: its path below what it describes: a model, a pair of models, a reward model. label: at most 24 characters with
    its unit in tables of three models, since a terminal breaks longer ones. better: None where neither direction is,
    as for the reward: PPO is trained to raise it, so a higher one alone shows no better answers.
    """

    key: str
    label: str
    unit: str = "points"
    better: Literal["higher", "lower"] | None = None
    heldout_key: str | None = None  # its key among what is measured on held-out prompts while PPO trains
    over_seeds: bool = False  # whether its spread over PPO's seeds is reported
    hub_type: str | None = None  # the type of the metric in a card's front matter; None leaves it out

    @property
    def title(self) -> str:
        """The label, with the unit where the figures do not show it."""
        return self.label if self.unit in _UNITS_IN_CELLS else self.axis

    @property
    def axis(self) -> str:
        """The label with its unit."""
        return f"{self.label}, {self.unit}"


REWARD = Metric("reward", "Reward", heldout_key="reward", over_seeds=True, hub_type="mean_reward")
JUDGE_REWARD = Metric("judge_reward", "Judge's reward", "points", "higher", "judge_reward", True, "mean_judge_reward")
UTILITY = Metric("utility", "Utility", "points", "higher", "utility", True, "mean_utility")
TOKENS = Metric("answer_tokens", "Length", "tokens", None, "answer_tokens", True)
EOS_RATE = Metric("eos_rate", "Ended with EOS", "share", "higher", "eos_rate", True)
DISTINCT = Metric("distinct_2", "Distinct bigrams", "share", "higher", "distinct_2", True)
REFUSALS = Metric("refusal_rate", "Refusals", "share", over_seeds=True)
TOXIC = Metric("toxic_rate", "Toxic language", "share", "lower", over_seeds=True)
KL = Metric("kl_to_sft_nats", "KL to SFT", "nats", None, "kl_nats", True, "kl_divergence")

MEASURES = (UTILITY, JUDGE_REWARD, REWARD)  # of an answer; first those that PPO is not trained on
WINS_VS_SFT = (  # by the same measures
    Metric("win_rate_vs_sft_by_utility", "Wins vs SFT by utility", "share", "higher", None, True, "win_rate"),
    Metric("win_rate_vs_sft_by_judge", "Wins vs SFT by judge", "share", "higher", None, True, "win_rate"),
    Metric("win_rate_vs_sft", "Wins vs SFT by reward", "share", None, None, True, "win_rate"),
)
OF_MODEL = (  # evaluation/models/NAME/
    *MEASURES,
    *WINS_VS_SFT,
    Metric("win_rate_vs_base_by_utility", "Wins vs base by utility", "share", "higher", hub_type="win_rate"),
    Metric("win_rate_vs_base_by_judge", "Wins vs base by judge", "share", "higher", hub_type="win_rate"),
    Metric("win_rate_vs_base", "Wins vs base by reward", "share", hub_type="win_rate"),
    TOKENS,
    EOS_RATE,
    DISTINCT,
    REFUSALS,
    TOXIC,
    KL,
    Metric("kl_bound_nats", "KL bound", "nats"),
    Metric("chosen_perplexity", "Perplexity", better="lower"),
)
OF_SEED = (
    Metric("kept_update", "Update handed on", "count"),
    Metric("stopped", "Stopped by the guard"),
    Metric("collapsed", "Collapsed"),
)
OF_PAIR = (  # evaluation/paired/NAME/
    *MEASURES,
    Metric("reward_sd", "Reward, in SD"),
    Metric("by_judge/win", "Judge: rose", "share", "higher"),
    Metric("by_judge/tie", "Judge: unchanged", "share"),
    Metric("by_judge/loss", "Judge: fell", "share", "lower"),
    Metric("by_reward/win", "Reward rose", "share"),
    Metric("by_reward/tie", "Reward unchanged", "share"),
    Metric("by_reward/loss", "Reward fell", "share"),
    Metric("length_matched/win", "Matched: rose", "share"),
    Metric("length_matched/tie", "Matched: unchanged", "share"),
    Metric("length_matched/loss", "Matched: fell", "share"),
    Metric("length_matched/pairs", "Matched pairs", "count"),
    REFUSALS,
    TOXIC,
)
OF_SUBSET = (  # evaluation/by_subset/NAME/
    Metric("models/sft/reward", "Reward, SFT"),
    Metric("models/ppo/reward", "Reward, PPO"),
    Metric("ppo_minus_sft/reward", "Reward, PPO - SFT"),
    Metric("ppo_minus_sft/judge_reward", "Judge's reward, PPO - SFT"),
    Metric("ppo_minus_sft/utility", "Utility, PPO - SFT"),
)
ACCURACY = Metric("accuracy", "Accuracy", "share", "higher", hub_type="accuracy")
OF_PREFERENCES = (  # the accuracy of a reward model on held-out pairs, beside its baselines
    ACCURACY,
    Metric("baselines/longer_answer_wins", "Longer answer wins", "share"),
    Metric("baselines/chance", "Chance", "share"),
    Metric("baselines/best_reachable", "Reachable", "share"),
)
OF_REWARD_MODEL = (  # reward_model/ and judge/
    Metric("calibration/expected_error", "Calibration error", "share", "lower"),
    Metric("length_bias/correlation", "Correlation of score and length"),
    Metric("length_bias/accuracy_chosen_longer", "Accuracy, chosen answer longer", "share", "higher"),
    Metric("length_bias/accuracy_chosen_shorter", "Accuracy, chosen answer shorter", "share", "higher"),
    Metric("margin", "Score, chosen - rejected"),
)
CONFIDENCE = Metric("predicted", "Mean confidence", "share")
OBSERVED = Metric("observed", "Accuracy", "share", "higher")
SFT_LOSS = Metric("loss", "Loss", "nats per token", "lower", hub_type="loss")
PAIR_LOSS = Metric("loss", "Loss", "nats per pair", "lower")


_KL_PANEL, _SHARES_PANEL = f"{KL.axis} per answer", "Shares of the answers"
REPORT_PANELS = (REWARD.label, _KL_PANEL, TOKENS.axis, _SHARES_PANEL)  # the panels that the report shows
PANELS = {  # of the picture of PPO's training: the keys of metrics.jsonl by label; "eval/" is of held-out prompts
    REWARD.label: {
        "training": "objective/unshaped_scores",
        "held-out": "eval/reward",
        "judge": "eval/judge_reward",
        "utility": "eval/utility",
    },
    _KL_PANEL: {
        "training, k1": "objective/kl_k1",
        "training, k3": "objective/kl_k3",
        "held-out, exact": "eval/kl_nats",
        "held-out, k1": "eval/kl_k1",
        "held-out, k3": "eval/kl_k3",
    },
    TOKENS.axis: {"training": "answer/tokens", "held-out": "eval/answer_tokens"},
    _SHARES_PANEL: {
        "EOS, training": "answer/eos_rate",
        "EOS, held-out": "eval/eos_rate",
        "distinct bigrams": "eval/distinct_2",
    },
    "Entropy, nats per token": {"policy": "policy/entropy_avg"},
    "Clipping and critic, shares": {
        "policy clipped": "policy/clipfrac_avg",
        "value clipped": "val/clipfrac_avg",
        "explained variance": "val/explained_variance",
    },
    "Gradient norm before clipping": {"policy and critic": "grad_norm"},
    "Seconds per update": {
        "rollout": "time/rollout_s",
        "scoring": "time/score_s",
        "update": "time/update_s",
        "other": "time/other_s",
    },
}
PROGRESS = {  # the figures of the progress line, most important first: labels by key of metrics.jsonl
    "loss": "loss",
    "train_loss": "mean loss",
    "accuracy": "accuracy",
    "objective/scores": "reward",
    "objective/kl": "KL",
    "eval/utility": "held-out utility",
    "eval/judge_reward": "held-out judge",
    "eval/reward": "held-out reward",
    "eval/kl_nats": "held-out KL",
    "learning_rate": "lr",
    "lr": "lr",
}
