"""Estimate how long each stage takes, from its rows and updates and from parts of the model timed on this machine."""

import math
from collections.abc import Mapping

from gpt2_rlhf.config import methods, ppo_sizes
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.models.memory import Lengths, answers_at_once, as_computed
from gpt2_rlhf.models.shape import Shape
from gpt2_rlhf.models.speed import Machine

# Small operations that take as long as, on one core (4 us each):
_START = 400_000  # a stage's start and end: its process, loading, building the trainer, saving
_STEP = 5_000  # what the trainer does around a step


def updates(name: str, settings: Settings, rows: int, processes: int) -> int:
    """Return the optimizer steps of SFT or a reward model, or PPO's updates. rows: of the stage's table."""
    args = settings.trained_by(name).args
    if (args.get("max_steps") or 0) > 0:
        return int(args["max_steps"])
    if name == "ppo":
        return -(-int(args["total_episodes"]) // ppo_sizes.fit(settings.ppo, rows, processes).episodes_per_update)
    batch = args["per_device_train_batch_size"] * args["gradient_accumulation_steps"] * processes
    if name == "rloo":
        rounds = -(-settings.rloo.episodes // (answers_at_once(args) * processes))
        return rounds * answers_at_once(args) * processes // batch * (args.get("num_iterations") or 1)
    return math.ceil(-(-rows // batch) * args["num_train_epochs"])


class Durations:
    """Seconds of each stage on this machine. On a CPU all processes share the cores; each has a GPU of its own."""

    def __init__(self, settings: Settings, shape: Shape, tables: Mapping[str, Lengths], processes: int) -> None:
        self._settings, self._shape, self._tables, self._processes = settings, shape, tables, processes
        gate = 1.5 if shape.is_gated else 1  # three matrices in place of two
        half = any(part.args.get(kind) for part in (settings.sft, settings.reward) for kind in ("bf16", "fp16"))
        self.machine = Machine(shape.width, int(gate * shape.inner), shape.heads, half)
        self._layers = shape.layers * self.machine.scale  # time of all layers over that of the one that is timed
        self._sharing = processes if self.machine.device.type == "cpu" else 1

    def seconds(self, name: str) -> float:
        """Return the estimate for a stage other than data."""
        of = {"ppo": self._ppo, "rloo": self._rloo, "evaluate": self._evaluate}.get(name)
        return _START * self.machine.call() + (of() if of else self._supervised(name))

    def _supervised(self, name: str) -> float:
        rows, test, is_sft = self._tables[methods.table_of(name)], self._tables["test"], name == "sft"
        args = self._settings.trained_by(name).args
        texts = args["per_device_train_batch_size"] * (1 if is_sft else 2)
        answers = round(texts * rows.answer) if name in ("sft", "dpo") else 0
        micro_steps = args["gradient_accumulation_steps"] * self._sharing
        again = 4 / 3 if args.get("activation_checkpointing") else 1
        columns = _length(as_computed(name, rows, self._shape, self.machine.device.type != "cpu"))
        learn = again * self._layers * self.machine.learn(texts, columns) + 3 * self._logits(answers)
        held_out = min(self._settings.evaluate.pairs, test.rows)
        measured = 2 * self._read(test, held_out, with_logits=is_sft)  # before and after, or both answers
        if name == "dpo":  # its reference reads each batch, and nothing is measured
            learn, measured = learn + self._layers * self.machine.read(texts, columns) + self._logits(answers), 0
        steps = updates(name, self._settings, rows.rows, self._processes)
        return steps * (micro_steps * learn + self._step(self._shape.weights)) + measured

    def _ppo(self) -> float:
        settings, args, rows = self._settings.ppo, self._settings.ppo.args, self._tables["ppo"]
        sizes = ppo_sizes.fit(settings, rows.rows, self._processes)
        episodes = sizes.episodes_per_update // self._processes * self._sharing
        at_once = min(int(args["local_rollout_forward_batch_size"]), episodes)
        answer = min(float(args["response_length"]), rows.answer * 1.5)  # a policy ends later than people do
        texts = sizes.per_device_train_batch_size
        columns = round(rows.prompt + answer)
        # where policy and critic compute at the same time (models.threads), so do the other models
        in_threads = self._settings.launch.threads == self._processes == 1 and self.machine.device.type == "cpu"
        learnt, read, measured = (1, 2, 2) if in_threads else (2, 3, 4)
        learn = learnt * self._layers * self.machine.learn(texts, columns) + 3 * self._logits(round(texts * answer))
        steps = args["num_ppo_epochs"] * sizes.num_mini_batches * self._sharing
        update = (
            self._sample(rows, episodes, at_once, args["response_length"])
            + read * self._layers * self.machine.read(at_once, columns) * episodes / at_once
            + self._logits(round(episodes * answer))
            + args["num_ppo_epochs"] * learn * episodes / texts
            + steps * self._step(2 * self._shape.weights)
        )
        count = updates("ppo", self._settings, rows.rows, self._processes)
        found = count * update
        if withheld := sizes.withheld_prompts:
            measure = self._sample(rows, withheld, self._settings.evaluate.batch_size, args["response_length"])
            measure += measured * self._read(rows, withheld, with_logits=True)
            found += (1 + -(-count // args["eval_steps"])) * measure
        return found

    def _rloo(self) -> float:
        args, rows = self._settings.rloo.args, self._tables["ppo"]
        episodes, texts = answers_at_once(args) * self._sharing, args["per_device_train_batch_size"]
        answer = min(float(args["max_completion_length"]), rows.answer * 1.5)
        columns = round(rows.prompt + answer)
        rounds = self._settings.rloo.episodes / (answers_at_once(args) * self._processes)
        passes = 3 * self._layers * self.machine.read(texts, columns) + 2 * self._logits(round(texts * answer))
        learn = self._layers * self.machine.learn(texts, columns) + 3 * self._logits(round(texts * answer))
        sampled = self._sample(rows, episodes, episodes, args["max_completion_length"])
        steps = updates("rloo", self._settings, rows.rows, self._processes) * self._sharing
        learnt = (args.get("num_iterations") or 1) * learn
        return rounds * (sampled + (passes + learnt) * episodes / texts) + steps * self._step(self._shape.weights)

    def _evaluate(self) -> float:
        settings, test = self._settings.evaluate, self._tables["test"]
        prompts, draws = min(settings.prompts, test.rows), settings.best_of or 1
        sampled = self._sample(test, prompts * (2 + draws), settings.batch_size, settings.max_new_tokens)
        passes = 8 + (draws + 2) * (1 + self._settings.data.has_judge)  # log-probabilities, losses, scores
        return sampled + passes * self._read(test, prompts, with_logits=True)

    def _sample(self, rows: Lengths, texts: int, at_once: int, tokens: int) -> float:
        at_once = max(1, min(at_once, texts))
        past = round(rows.prompt + tokens / 2)
        token = self._layers * self.machine.generate(at_once, past)
        token += self.machine.logits(at_once, self._shape.vocabulary, draws=True)
        first = self._layers * self.machine.read(at_once, max(1, round(rows.prompt)))
        return texts / at_once * (tokens * token + first)

    def _read(self, rows: Lengths, texts: int, with_logits: bool) -> float:
        """Return the seconds of one pass over these texts."""
        at_once = max(1, min(texts, self._settings.evaluate.batch_size))
        layers = self._layers * self.machine.read(at_once, _length(rows)) * texts / at_once
        return layers + self._logits(round(texts * rows.answer) if with_logits else 0)

    def _logits(self, tokens: int) -> float:
        return self.machine.logits(tokens, self._shape.vocabulary, draws=False) if tokens else 0.0

    def _step(self, weights: int) -> float:
        return self.machine.step() * weights / self.machine.weights + _STEP * self.machine.call()


def _length(rows: Lengths) -> int:
    return round(rows.prompt + rows.answer)
