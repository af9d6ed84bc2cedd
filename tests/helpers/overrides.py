"""Settings with overrides, without composing them again, which takes a third of a second."""

import yaml

from gpt2_rlhf.config.settings import Settings, with_value


def changed(settings: Settings, *overrides: str) -> Settings:
    """Return the settings with overrides such as "ppo.args.kl_coef=0.2"."""
    for key, _, value in (override.partition("=") for override in overrides):
        settings = with_value(settings, key, yaml.safe_load(value))
    return settings
