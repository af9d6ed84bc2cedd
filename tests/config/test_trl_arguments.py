import pytest

from gpt2_rlhf.config import trl_arguments, trl_fields
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.trl_arguments import PPO_USES, REFUSED

FIELDS = {stage: set(trl_fields.fields(stage)) for stage in trl_fields.STAGES}


def test_every_refused_argument_is_one_that_trl_has() -> None:
    assert set(REFUSED) <= set().union(*FIELDS.values())


def test_every_argument_ppo_uses_is_one_that_ppo_config_has_and_a_user_may_set() -> None:
    assert FIELDS["ppo"] >= PPO_USES
    assert not PPO_USES & set(REFUSED)


@pytest.mark.parametrize(
    ("stage", "args", "message"),
    [
        ("sft", {"packing": True}, "sft.args.packing: cannot be set here: the pipeline trains without padding"),
        ("sft", {"padding_free": True}, "sft.args.padding_free: cannot be set here"),
        ("sft", {"eval_packing": True}, "sft.args.eval_packing: cannot be set here"),
        ("sft", {"label_smoothing_factor": 0.1}, "sft.args.label_smoothing_factor: 0.1: TRL's losses have no"),
        ("reward", {"label_smoothing_factor": 0.1}, "reward.args.label_smoothing_factor: 0.1: TRL's losses have no"),
        ("reward", {"use_liger_kernel": True}, "reward.args.use_liger_kernel: cannot be set here"),
        ("reward", {"save_only_model": True}, "reward.args.save_only_model: cannot be set here: a resumed stage"),
        ("sft", {"save_strategy": "best"}, "sft.args.save_strategy: best: checkpoints are for resuming"),
        (
            "reward",
            {"train_sampling_strategy": "group_by_length"},
            "train_sampling_strategy: .*: a pair has two lengths",
        ),
        ("ppo", {"lr_scheduler_type": "reduce_lr_on_plateau"}, "ppo.args.lr_scheduler_type: .*no evaluation loss"),
        ("ppo", {"optim": "adalomo"}, "ppo.args.optim: adalomo: it updates in the backward pass"),
        ("ppo", {"optim": "galore_adamw_layerwise"}, "ppo.args.optim: galore_adamw_layerwise: it updates in the"),
        ("ppo", {"optim": "schedule_free_radam"}, "ppo.args.optim: schedule_free_radam: PPO does not switch"),
        ("rloo", {"max_steps": 9}, "rloo.args.max_steps: 9: the episodes decide; set rloo.episodes="),
        ("rloo", {"eval_strategy": "steps"}, "rloo.args.eval_strategy: steps: the evaluation of the run"),
        ("rloo", {"use_vllm": True}, "rloo.args.use_vllm: cannot be set here: the pipeline samples by itself"),
        ("rloo", {"vllm_mode": "server"}, "rloo.args.vllm_mode: server: the pipeline samples by itself"),
        ("sft", {"loss_type": "nil"}, "sft.args.loss_type: 'nil' is not a value TRL knows; did you mean nll?"),
        ("dpo", {"loss_type": ["sigmoid", "dpo"]}, "dpo.args.loss_type: 'dpo' is not a value TRL knows"),
        ("dpo", {"max_length": 64}, "dpo.args.max_length: cannot be set here: the data stage limits lengths"),
        ("sft", {"dataloader_persistent_workers": True}, "no workers; set sft.args.dataloader_num_workers"),
        (
            "ppo",
            {"fsdp": "full_shard"},
            "ppo.args.fsdp: cannot be set here: set launch.processes=",
        ),
        (
            "reward",
            {"deepspeed": "file.json"},
            "reward.args.deepspeed: cannot be set here: set launch.processes=",
        ),
    ],
)
def test_what_would_fail_late_or_train_wrongly_is_refused(stage: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        trl_arguments.check(stage, args)
    assert "\n" not in str(caught.value)


def test_what_other_stages_refuse_is_allowed_where_it_works() -> None:
    trl_arguments.check(
        "sft", {"train_sampling_strategy": "group_by_length", "optim": "lomo", "save_strategy": "epoch"}
    )
    trl_arguments.check("dpo", {"loss_type": ["sigmoid", "sft"]})
    trl_arguments.check("sft", {"dataloader_persistent_workers": True, "dataloader_num_workers": 2})
