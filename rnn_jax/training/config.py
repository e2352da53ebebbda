"""What a training run does when, and the batches that it reads."""

import dataclasses

import grain
import numpy as np

from rnn_jax import tasks
from rnn_jax.tasks.augmentation import make_augmentation
from rnn_jax.tasks.bucketing import bucket_boundaries, width_count

_LARGEST = 2**31 - 1  # steps are counted in int32
_MOST_TIMES = 1_000_000  # that a run is evaluated, or looked at
_MOST_KEPT = 100  # weights on the way through training: each takes its place on disk, and its time to be measured
_CHOICES = {"on_nonfinite": ("stop", "skip", "take"), "look": ("probe", "update")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run does when.

    Attributes:
      steps: batches in all; one each is a step.
      batch_size: sequences in a batch.
      eval_at: steps after which the validation split is scored and a checkpoint is written. The last step is always
        among them. `every` and `evenly` make such sets.
      look_at: steps after which the gradient flow is looked at, and the last one; none never looks.
      look: what a look shows. "probe": gradient flow and gates on one batch that stays the same, in a pass of its own,
        and the norms of gradient, update and weights by layer. "update": the gradient flow and the loss of the update
        that follows, from its own batch and backward pass, which takes no pass more; the mean loss is not logged.
      seed: of the order of the data and of dropout, for one model.
      keep_at: steps after which the weights are kept, in a checkpoint of their own: `kept_at`.
      keep_best: whether the result is the model with the best score on the validation split, or the last one.
      patience: evaluations without a better score after which training stops; None goes on.
      on_nonfinite: at a loss or gradient that is not finite, "stop", "skip" the update and count it, or "take" it.
      devices: over which each batch is spread, as `rnn_jax.batch_mesh` has them.
      crop, token_dropout: of the texts it trains on, as `rnn_jax.tasks.augmentation`; 1 and 0 leave them as they are.
    """

    steps: int
    batch_size: int
    eval_at: frozenset[int]
    look_at: frozenset[int]
    look: str = "probe"
    seed: int = 0
    keep_at: frozenset[int] = frozenset()
    keep_best: bool = True
    patience: int | None = None
    on_nonfinite: str = "stop"
    devices: int = 1
    crop: float = 1.0
    token_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("devices", 1), ("seed", 0)):
            value = getattr(self, name)
            if not least <= value <= _LARGEST:
                allowed = f"{least} or more" if value < least else f"at most {_LARGEST}"
                raise ValueError(f"{name}={value} is out of range; allowed: {allowed}.")
        for name in ("eval_at", "look_at", "keep_at"):
            outside = sorted(step for step in getattr(self, name) if not 0 <= step <= self.steps)
            if outside:
                raise ValueError(f"{name} has step {outside[0]}, out of range; allowed: 0 to {self.steps}.")
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared out evenly over devices={self.devices};"
                " allowed: a multiple of them."
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience} is out of range; allowed: 1 or more evaluations, or None.")
        if self.patience is not None and not self.keep_best:
            raise ValueError(
                f"patience={self.patience} with keep_best=False would end with a model that is not the best;"
                " allowed: keep_best=True."
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(choices)}.")


def check_members(seed: int, seeds: int) -> None:
    """Raises ValueError if the last member of an ensemble, seed + seeds - 1, has a seed that is out of range."""
    if seed + seeds - 1 > _LARGEST:
        raise ValueError(f"seed={seed} with seeds={seeds} is out of range; allowed: a last seed of {_LARGEST} or less.")


def every(interval: int, steps: int, name: str = "interval") -> frozenset[int]:
    """Returns the multiples of an interval from 1 times to the number of steps.

    Raises:
      ValueError: if there would be more than a million; `name` is what the sentence calls the interval.
    """
    if steps // interval > _MOST_TIMES:
        raise ValueError(
            f"{name}={interval} is out of range for {steps} steps; allowed: at most {_MOST_TIMES:,} times in all."
        )
    return frozenset(range(interval, steps + 1, interval))


def kept_at(interval: int | None, steps: int) -> frozenset[int]:
    """Returns the multiples of an interval below the number of steps, after which weights are kept for instruments.

    Args:
      interval: of --instruments_every; None keeps none.
      steps: of the training. The weights at its end are kept anyway.

    Raises:
      ValueError: if there would be none, or more than a hundred.
    """
    if interval is None:
        return frozenset()
    least = (steps - 1) // (_MOST_KEPT + 1) + 1
    if not least <= interval < steps:
        raise ValueError(
            f"--instruments_every={interval} is out of range for {steps} steps; allowed: {least} or more, so that at"
            f" most {_MOST_KEPT} networks are kept, and less than the steps."
        )
    return frozenset(range(interval, steps, interval))


def evenly(count: int, steps: int) -> frozenset[int]:
    """Returns 0, the last step, and steps between at about equal distances: `count` beside the first, or all."""
    return frozenset(round(step) for step in np.linspace(0, steps, count + 1))


def widths_of(task: tasks.Task, config: TrainConfig) -> tuple[int, ...] | None:
    """Returns the widths of the batches that a run reads: fewer if it is short. None if all sequences have one length.

    They follow from the task and the number of steps alone, so that a resumed run reads the same batches.
    """
    lengths = task.train.lengths
    return None if lengths is None else bucket_boundaries(lengths, width_count(config.steps))


def batches_of(task: tasks.Task, config: TrainConfig) -> grain.DatasetIterator:
    """Returns the batches a run reads.

    Raises:
      ValueError: if the batch size is out of range, or texts are to be changed that the task does not have.
    """
    augment = None
    if config.crop != 1 or config.token_dropout:
        if task.vocabulary is None or task.kind is not tasks.Kind.ONE_ANSWER:
            raise ValueError(
                f"crop={config.crop} and token_dropout={config.token_dropout} change texts to be classified, which the"
                f" task {task.name!r} has not; allowed: crop=1 and token_dropout=0."
            )
        augment = make_augmentation(config.seed, crop=config.crop, token_dropout=config.token_dropout)
    if task.kind is tasks.Kind.STREAM:
        assert isinstance(task.train, tasks.StreamSource)
        return tasks.stream_batches(task.train, config.batch_size)
    return tasks.batches(task.train, config.batch_size, config.seed, augment, widths_of(task, config))
