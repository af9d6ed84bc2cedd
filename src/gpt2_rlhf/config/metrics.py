"""Describe every metric that is printed, once: key, label, unit, decimals, and what better means.

The terminal, the report, the model cards with their front matter, the table of seeds, the plots and the progress line
read it here. To print a figure that the evaluation already computes, add its line here and change no other file.
"""

from dataclasses import dataclass
from typing import Literal

_DECIMALS = {"share": 1, "seconds": 1, "MiB": 0}  # of the other units 2
_UNITS_IN_CELLS = ("points", "share", "count", "seconds", "MiB")  # the others are part of the label


def decimals(unit: str) -> int:
    """Return how many decimals a figure of this unit has; those of a share are of percent."""
    return _DECIMALS.get(unit, 2)


@dataclass(frozen=True)
class Metric:
    """A figure of a table.

    key: its path below what it describes: a model, a pair of models, a reward model. label: at most 18 characters with
    its unit where the terminal has it beside three models. better: None where neither direction is better, as for the
    reward: PPO is trained to raise it, so a higher one alone shows no better answers.
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
KL = Metric("kl_to_sft_nats", "KL to SFT", "nats", None, "kl_nats", True, "kl_divergence")

OF_MODEL = (  # evaluation/models/NAME/
    REWARD,
    JUDGE_REWARD,
    UTILITY,
    Metric("win_rate_vs_base", "Wins against base", "share", hub_type="win_rate"),
    Metric("win_rate_vs_sft", "Wins against SFT", "share", over_seeds=True, hub_type="win_rate"),
    TOKENS,
    Metric("eos_rate", "Ended with EOS", "share", "higher", "eos_rate", True),
    Metric("distinct_2", "Distinct bigrams", "share", "higher", "distinct_2", True),
    KL,
    Metric("kl_bound_nats", "KL bound", "nats"),
    Metric("chosen_perplexity", "Perplexity", better="lower"),
)
OF_PAIR = (  # evaluation/paired/NAME/
    REWARD,
    Metric("reward_sd", "Reward, in SD"),
    JUDGE_REWARD,
    UTILITY,
    Metric("by_reward/win", "Reward rose", "share"),
    Metric("by_reward/tie", "Reward unchanged", "share"),
    Metric("by_reward/loss", "Reward fell", "share"),
    Metric("by_judge/win", "Judge: rose", "share", "higher"),
    Metric("by_judge/tie", "Judge: unchanged", "share"),
    Metric("by_judge/loss", "Judge: fell", "share", "lower"),
    Metric("length_matched/win", "Matched: rose", "share"),
    Metric("length_matched/tie", "Matched: unchanged", "share"),
    Metric("length_matched/loss", "Matched: fell", "share"),
    Metric("length_matched/pairs", "Matched pairs", "count"),
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


@dataclass(frozen=True)
class Logged:
    """A metric of metrics.jsonl: its panel in the picture of PPO's training, its label there, its name on the terminal.

    Keys that start with "eval/" are of held-out prompts.
    """

    key: str
    panel: str | None = None
    label: str | None = None
    progress: str | None = None


_KL_PANEL, _SHARES_PANEL = f"{KL.axis} per answer", "Shares of the answers"
_CLIPPING_PANEL, _SECONDS_PANEL = "Clipping and critic, shares", "Seconds per update"
REPORT_PANELS = (REWARD.label, _KL_PANEL, TOKENS.axis, _SHARES_PANEL)  # the panels that the report shows
LOGGED = (
    Logged("loss", progress="loss"),
    Logged("train_loss", progress="mean loss"),
    Logged("accuracy", progress="accuracy"),
    Logged("objective/scores", progress="reward"),
    Logged("objective/kl", progress="kl"),
    Logged("objective/unshaped_scores", REWARD.label, "training"),
    Logged("eval/reward", REWARD.label, "held-out", "held-out reward"),
    Logged("eval/judge_reward", REWARD.label, "judge", "judge"),
    Logged("eval/utility", REWARD.label, "utility", "utility"),
    Logged("objective/kl_k1", _KL_PANEL, "training, k1"),
    Logged("objective/kl_k3", _KL_PANEL, "training, k3"),
    Logged("eval/kl_nats", _KL_PANEL, "held-out, exact", "held-out kl"),
    Logged("eval/kl_k1", _KL_PANEL, "held-out, k1"),
    Logged("eval/kl_k3", _KL_PANEL, "held-out, k3"),
    Logged("answer/tokens", TOKENS.axis, "training"),
    Logged("eval/answer_tokens", TOKENS.axis, "held-out"),
    Logged("answer/eos_rate", _SHARES_PANEL, "EOS, training"),
    Logged("eval/eos_rate", _SHARES_PANEL, "EOS, held-out"),
    Logged("eval/distinct_2", _SHARES_PANEL, "distinct bigrams"),
    Logged("policy/entropy_avg", "Entropy, nats per token", "policy"),
    Logged("policy/clipfrac_avg", _CLIPPING_PANEL, "policy clipped"),
    Logged("val/clipfrac_avg", _CLIPPING_PANEL, "value clipped"),
    Logged("val/explained_variance", _CLIPPING_PANEL, "explained variance"),
    Logged("grad_norm", "Gradient norm before clipping", "policy and critic"),
    Logged("time/rollout_s", _SECONDS_PANEL, "rollout"),
    Logged("time/score_s", _SECONDS_PANEL, "scoring"),
    Logged("time/update_s", _SECONDS_PANEL, "update"),
    Logged("time/other_s", _SECONDS_PANEL, "other"),
    Logged("learning_rate", progress="lr"),
    Logged("lr", progress="lr"),
)


def panels() -> dict[str, dict[str, str]]:
    """Return the panels of the picture of PPO's training: the keys by label, by panel."""
    found: dict[str, dict[str, str]] = {}
    for one in LOGGED:
        if one.panel is not None and one.label is not None:
            found.setdefault(one.panel, {})[one.label] = one.key
    return found
