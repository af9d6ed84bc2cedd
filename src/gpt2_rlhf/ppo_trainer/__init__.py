"""PPO for language models: TRL 1.12's `PPOTrainer`, which later releases of TRL no longer have, with repairs.

It works without the rest of this package. A script written for TRL changes one import::

    from gpt2_rlhf.ppo_trainer import PPOConfig, PPOTrainer     # was: from trl.experimental.ppo import ...

`PPOConfig` is TRL's. `PPOTrainer` takes TRL's arguments, then these keyword arguments, all optional:

- `score_function(prompts, answers)`: one number for each answer, from their texts; `reward_model` may then be None.
- `shaping=Shaping(mean, std, clip)`: normalise and clip scores.
- `kl=PpoKl(target_nats, horizon_episodes)`: adapt the KL coefficient to a target (Ziegler et al. 2019).
- `watch`: measure the policy on held-out prompts while it trains, keep the best, stop a run that goes wrong (watch.py).
- `rollout_cache`: how sampling keeps keys and values, "static" or "compiled"; None: as transformers does.
- `force=False`: stop before the first update if no answer ends with EOS, or the reference is not the starting policy.

`trainer.train(resume_from_checkpoint="OUTPUT_DIR/checkpoint-N")` continues a run, on a CPU to exactly the same weights.
`examples/ppo_alone.py` trains, stops and resumes a tiny model in seconds.

What TRL's trainer does wrong (numbers as in the project's audit) and this one does right:

1. With several processes, saving fails (D1), and LoRA without `ref_model` fails (D2). Both work.
2. Optimizer steps are miscounted with gradient accumulation and mini-batches (D3), and after each pass over the
   prompts (D4). Here each mini-batch is one step.
3. `max_grad_norm` (D5), bf16 and fp16 (D7), `max_steps`, `logging_steps` and a callback's stop (D13) are ignored.
4. If padding is EOS, PPO never trains EOS, so the policy cannot learn to stop (D6); if padding is on the right, the
   ratio is wrong (D9). Both are refused. A sampled padding token counts as the end; here it is never sampled.
5. With fewer prompts than one batch it hangs (D8); with prompts that are too long it fails inside the model, and with
   text columns in the collator (D18). Here the first two are refused, and text columns are left out.
6. It samples with the policy's own generation settings, such as a repetition penalty, so the log-probabilities are of
   another distribution (D10), and without `stop_token` it never stops and saves a policy without EOS (D11). Here
   sampling is plain, and EOS always ends an answer.
7. Results depend on the state of numpy's generator and on drawing samples (D12). Here they depend on `seed` only.
8. Statistics average over padding and over slots that were never filled, and weight microbatches alike (D16,
   huggingface/trl#7012, #6809). Here they are means over real tokens.
9. The logits of all rollouts stay in memory during the update (D17). Here only the log-probabilities do.
10. With warm-up the first update has learning rate 0 and is wasted (D20). Here its learning rate is above 0.
11. Checkpoints lack the value model and the position in the prompts, and cannot be resumed (D21).
12. The gradient depends on the microbatch size and the number of processes: it is that of a mean over microbatches of
    their means, and each process normalises its own advantages (D23). Here both are over a mini-batch's tokens, or a
    batch's, in all processes. With one process and one microbatch a mini-batch the two definitions coincide.
13. If all answers stop early, the longest has no position after EOS for its score. Here each has, up to
    `response_length`, so a row's targets do not depend on the rows beside it.

A `stop_token_id` other than EOS is refused, because the penalty for a missing EOS would punish answers that do stop
(D14). Two choices are kept as they are: the score stands one position after EOS (D15), and prompts that do not fill a
batch are left out of that pass (D19).

What a script may notice after the change of import:

- `bf16` is on in PPOConfig unless set, and is now used; pass `bf16=False` for the float32 in which TRL trained.
- `save_model` writes the policy without the tokenizer, because a tokenizer that pads with another token than EOS should
  not be published by accident; save yours with `tokenizer.save_pretrained`. Nothing is pushed during training.
- `eval_dataset` is used for samples only, as in TRL (D22): `num_sample_generations` and `generate_completions()`.
- `data_collator` must be None or DataCollatorWithPadding: prompts are read from `input_ids`.
- `PPOConfig(fsdp=True)` shares policy and critic between the processes (FSDP2). DeepSpeed, `ref_adapter_name` and
  gradient checkpointing are not supported; the last is ignored, as in TRL.
- Reward and value model must have a `score` head, and all models a limit of positions in their config and attention
  that goes through transformers' AttentionInterface. GPT-2 and Llama were tried. A policy whose log-probabilities are
  not those with which it samples is refused before the first update.
"""

from gpt2_rlhf.config.settings import PpoKl
from gpt2_rlhf.ppo_trainer.reward_scores import Shaping
from gpt2_rlhf.ppo_trainer.trainer import PPOConfig, PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer", "PpoKl", "Shaping"]
