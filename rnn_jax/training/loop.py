"""The training loop: it survives a kill at any moment and goes on to the very same numbers.

Whatever decides about an update is in the checkpoint: weights, optimiser, carried state, the position in the data, the
best score so far. What is random is drawn from (seed, number of the update). `metrics.csv` is cut at the length it had
when the checkpoint was made, and holds nothing that depends on time. A run that was killed and resumed thus leaves the
same bytes as one left alone, on one machine and with the same packages.

The device is never waited for but where numbers are logged. Whether loss and gradient are finite is judged on the
device: an update with one that is not leaves weights and optimiser as they were.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rnn_jax import tasks
from rnn_jax.flow import layer_calls
from rnn_jax.tasks.augmentation import make_augmentation
from rnn_jax.tasks.bucketing import bucket_boundaries, width_count
from rnn_jax.tasks.task import NOT_ASKED
from rnn_jax.training import run_directory
from rnn_jax.training.watch import diagnose, probe_batch
from rnn_jax.unroll import BATCH, batch_mesh

Array = jax.Array
PyTree = Any

LOG_EVERY = 10
_LARGEST_EVALUATED = 2**19  # steps in a batch of evaluation, and at most _EVALUATED sequences
_EVALUATED = 512
_STREAMS = 64  # into which the one stream of a language model's split is cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run does when.

    Attributes:
      steps: batches in all; one each is a step.
      batch_size: sequences in a batch.
      eval_every: steps between evaluations on the validation split, and between checkpoints.
      profile_every: steps between looks at the gradient flow; 0 never looks.
      seed: of the order of the data and of dropout.
      patience: evaluations without a better score after which training stops; None goes on.
      on_nonfinite: "stop" at a loss or gradient that is not finite, or "skip" that update and count it.
      devices: over which each batch is spread, as `rnn_jax.batch_mesh` has them.
      crop, token_dropout: of the texts it trains on, as `rnn_jax.tasks.augmentation`; 1 and 0 leave them as they are.
    """

    steps: int
    batch_size: int
    eval_every: int
    profile_every: int
    seed: int = 0
    patience: int | None = None
    on_nonfinite: str = "stop"
    devices: int = 1
    crop: float = 1.0
    token_dropout: float = 0.0

    def __post_init__(self) -> None:
        from_one = ("steps", "batch_size", "eval_every", "devices")
        for name, least in (*((name, 1) for name in from_one), ("profile_every", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; allowed: {least} or more.")
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared out evenly over devices={self.devices};"
                " allowed: a multiple of them."
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience} is out of range; allowed: 1 or more evaluations, or None.")
        if self.on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite={self.on_nonfinite!r} is unknown; allowed: stop, skip.")


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
      model: that of the best checkpoint; the last one where there is no validation split.
      step: after how many steps it was that model.
      steps: that were trained.
      validation_score: of the model on the validation split; None where there is none.
      test_score: of the model on the test split, which nothing else has looked at.
      skipped: updates left out because they were not finite.
      seconds: of training and evaluation, over all sessions.
      profile_steps: `[L]`, at which the gradient flow was looked at.
      profiles: by part of the carry, `[L, time]`.
    """

    model: PyTree
    step: int
    steps: int
    validation_score: float | None
    test_score: float
    skipped: int
    seconds: float
    profile_steps: list[int]
    profiles: dict[str, np.ndarray]


class Interrupted(Exception):
    """A signal asked the run to stop; the checkpoint `last` holds all it had done.

    Attributes:
      signal: its number.
      step: steps done.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(f"{signal.Signals(signum).name} at step {step}")
        self.signal = signum
        self.step = step


class NotFinite(Exception):
    """The loss or a gradient is not finite; the message says where that began."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "opt_state", "carry", "key", "step", "loss_sum", "loss_count", "skipped", "bad_step"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """All that an update reads and writes, on the device.

    Attributes:
      model, opt_state: as they are.
      carry: state carried from batch to batch by a language model; None for others.
      key: data of a `jax.random` key, of dropout. As data of the program, runs that differ in their seed share it.
      step: updates done, those skipped among them.
      loss_sum, loss_count: over the finite losses since the last that was logged.
      skipped: updates left out.
      bad_step: the first of them; 0 if there was none.
    """

    model: PyTree
    opt_state: PyTree
    carry: PyTree
    key: Array
    step: Array
    loss_sum: Array
    loss_count: Array
    skipped: Array
    bad_step: Array


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
        if task.vocabulary is None or task.per_step:
            raise ValueError(
                f"crop={config.crop} and token_dropout={config.token_dropout} change texts to be classified, which the"
                f" task {task.name!r} has not; allowed: crop=1 and token_dropout=0."
            )
        augment = make_augmentation(config.seed, crop=config.crop, token_dropout=config.token_dropout)
    if task.stateful:
        assert isinstance(task.train, tasks.StreamSource)
        return tasks.stream_batches(task.train, config.batch_size)
    return tasks.batches(task.train, config.batch_size, config.seed, augment, widths_of(task, config))


def initial_state(
    task: tasks.Task, model: PyTree, optimizer: optax.GradientTransformation, config: TrainConfig
) -> State:
    """Returns the state before the first update."""
    zero = jnp.zeros((), jnp.int32)
    carry = model.initialize_carry((config.batch_size,)) if task.stateful else None
    key = jax.random.key_data(jax.random.key(config.seed))
    return State(model, optimizer.init(model), carry, key, zero, jnp.zeros((), jnp.float32), zero, zero, zero)


def make_update(
    task: tasks.Task, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Callable[[State, tasks.Batch], tuple[State, dict[str, Array]]]:
    """Makes the update: `(state, batch) -> (state, squared norms of gradient, update and weights, [P leaves] each)`."""
    grad_fn = jax.value_and_grad(_training_loss(task, config), has_aux=True)

    def update(state: State, batch: tasks.Batch) -> tuple[State, dict[str, Array]]:
        (loss, carry), grads = grad_fn(state.model, state.carry, batch, state.key, state.step)
        finite = jnp.isfinite(loss)
        for leaf in jax.tree.leaves(grads):
            finite &= jnp.all(jnp.isfinite(leaf))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
        model = optax.apply_updates(state.model, updates)
        taken = finite if config.on_nonfinite == "skip" else finite & (state.bad_step == 0)

        def choose(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(partial(jnp.where, taken), new, old)

        step = state.step + 1
        loss = loss.astype(jnp.float32)
        after = State(
            model=choose(model, state.model),
            opt_state=choose(opt_state, state.opt_state),
            carry=choose(carry, state.carry),
            key=state.key,
            step=step,
            loss_sum=state.loss_sum + jnp.where(taken, loss, jnp.zeros_like(loss)),
            loss_count=state.loss_count + taken.astype(jnp.int32),
            skipped=state.skipped + (~taken).astype(jnp.int32),
            bad_step=jnp.where(finite | (state.bad_step > 0), state.bad_step, step),
        )
        return after, {"gradient": _squares(grads), "update": _squares(updates), "weight": _squares(state.model)}

    return update


def _training_loss(task: tasks.Task, config: TrainConfig) -> Callable[..., tuple[Array, PyTree]]:
    """Returns `(model, carry, batch, key, step) -> (loss, new carry)`."""

    def loss_of(model: PyTree, carry: PyTree, batch: tasks.Batch, key: Array, step: Array) -> tuple[Array, PyTree]:
        step_key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        if not task.stateful:
            return task.loss(partial(model, key=step_key), batch), None
        return _run_on(task.loss, model, carry, batch, key=step_key)

    return loss_of


def _run_on(
    function: Callable[..., Array], model: PyTree, carry: PyTree, batch: tasks.Batch, **kwargs: Any
) -> tuple[Array, PyTree]:
    """Applies a loss or score to a model that goes on from the carry of the batch before; returns the new carry, too.

    The gradient stops at the border of the batch: truncated back-propagation through time.

    References:
      Williams, Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
      trajectories", Neural Computation 2(4).
    """
    first = jnp.asarray(batch["first"])
    initial = model.initialize_carry(batch["tokens"].shape[:1])
    carry = jax.lax.stop_gradient(jax.tree.map(partial(jnp.where, first), initial, carry))
    carries = []

    def model_from_carry(tokens: Array, lengths: Array | None = None) -> Array:
        carry_out, ys = model(tokens, lengths, carry=carry, return_carry=True, **kwargs)
        carries.append(carry_out)
        return ys

    value = function(model_from_carry, batch)
    return value, carries[0]


def _squares(tree: PyTree) -> Array:
    return jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)])


def parameter_names(model: PyTree) -> list[str]:
    """Returns the path of every parameter, in the order of the leaves: "rnn/cell/kernel"."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(model):
        words = [jax.tree_util.keystr((key,), simple=True) for key in path]
        names.append("/".join(words[:-1] if words[-1] == "value" and len(words) > 1 else words))
    return names


def layer_of(parameter: str) -> str:
    """Returns the layer a parameter belongs to: "rnn" for "rnn/cell/kernel"."""
    words = parameter.split("/")[:-1]
    return "/".join(words[:-1] if words[-1:] == ["cell"] else words) or parameter


def describe_not_finite(task: tasks.Task, config: TrainConfig, state: State, batch: tasks.Batch, step: int) -> str:
    """Says where a loss or gradient that is not finite begins: of the state before that update, and its batch.

    A loss is followed forward: the first recurrent layer whose outputs are not finite, or else what stands behind
    them all. A gradient is followed backward: of the layers where it is not finite, the one next to the loss.
    """
    index = np.int32(step - 1)
    (loss, _), grads = jax.value_and_grad(_training_loss(task, config), has_aux=True)(
        state.model, state.carry, batch, state.key, index
    )
    names = parameter_names(state.model)
    bad = [name for name, leaf in zip(names, jax.tree.leaves(grads)) if not np.all(np.isfinite(leaf))]
    for name, leaf in zip(names, jax.tree.leaves(state.model)):
        if not np.all(np.isfinite(leaf)):
            return f"the parameter {name!r} of layer {layer_of(name)!r} is not finite"
    for name, array in batch.items():
        if not np.all(np.isfinite(array)):
            return f"the batch is not finite, in {name!r}, before any layer or parameter"

    loss_fn = _training_loss(task, config)
    calls = layer_calls(lambda model: loss_fn(model, state.carry, batch, state.key, index), state.model)
    rank = {layer: position for position, layer in enumerate(calls)}

    def position(name: str) -> int:
        """Of the layer of a parameter on the way from the input to the loss."""
        return -1 if "embedding" in name.split("/") else rank.get(layer_of(name), len(rank))

    if np.isfinite(loss):
        first, what = max(bad, key=position, default=names[0]), "a gradient is not finite"
    else:
        what = f"the loss is {float(loss)}"
        overflown = [
            layer for layer, runs in calls.items() if not all(_all_finite((run.final_carry, run.ys)) for run in runs)
        ]
        here = rank[overflown[0]] if overflown else len(rank)
        inside = [name for name in names if position(name) == here] or names
        first = next((name for name in inside if name in bad), inside[0])
    return f"{what}, first in layer {layer_of(first)!r}, parameter {first!r}"


def _all_finite(tree: PyTree) -> bool:
    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


class Evaluator:
    """The score of a model over a whole split, in one compilation for all splits, or two where lengths differ.

    Sequences go in by length, in batches of one size and of two widths, those that need the least padding. Each
    sequence is scored by itself, so that what fills up the last batch can be left out. The one stream of a language
    model is cut into several, side by side, of which each begins without a state.
    """

    def __init__(self, task: tasks.Task, place: Callable[[tasks.Batch], tasks.Batch] = lambda batch: batch):
        self.task, self._place = task, place
        splits = [split for split in (task.validation, task.test) if split is not None]
        lengths = [split.lengths for split in splits if split.lengths is not None]
        self._widths = bucket_boundaries(np.concatenate(lengths), 2) if lengths else None
        most = max(map(len, splits))
        self._size = max(1, min(_EVALUATED, most, _LARGEST_EVALUATED // max(1, task.seq_len)))
        self._scores = jax.jit(_score_each(task.score))
        self._score_on = jax.jit(partial(_run_on, task.score))

    def __call__(self, model: PyTree, source: tasks.Source) -> float:
        """Returns the mean score over all examples (over all steps asked, if per step) of a split."""
        weights, scores = [], []
        if self.task.stateful:
            assert isinstance(source, tasks.StreamSource)
            streams = min(_STREAMS, len(source))
            carry = model.initialize_carry((streams,))
            for batch in _pass_over(source, streams):
                score, carry = self._score_on(model, carry, self._place(batch))
                weights.append(np.sum(_asked(batch)))
                scores.append(score)
            return float(np.average(np.asarray(jax.device_get(scores), np.float64), weights=weights))
        for batch, count in self._batches(source):
            weights.append(_asked(batch)[:count])
            scores.append(self._scores(model, self._place(batch))[:count])
        scores_N = np.concatenate(jax.device_get(scores)).astype(np.float64)
        return float(np.average(scores_N, weights=np.concatenate(weights)))

    def _batches(self, source: tasks.Source) -> Iterator[tuple[tasks.Batch, int]]:
        """Yields batches, and how many of the sequences in each count: those behind fill it up."""
        lengths = source.lengths
        order = np.arange(len(source)) if lengths is None else np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self._size):
            chosen = order[start : start + self._size]
            width = None
            if self._widths is not None:
                assert lengths is not None
                width = next(width for width in self._widths if width >= lengths[chosen[-1]])
            filled = np.resize(chosen, self._size)
            yield tasks.collate([source[int(index)] for index in filled], lengths is not None, width), len(chosen)


def _score_each(score: Callable[[Any, tasks.Batch], Array]) -> Callable[[PyTree, tasks.Batch], Array]:
    """Makes `(model, batch) -> scores [B]` of a score that is a mean over the batch."""

    def scores(model: PyTree, batch: tasks.Batch) -> Array:
        return jax.vmap(lambda example: score(model, jax.tree.map(lambda array: array[None], example)))(dict(batch))

    return scores


def _asked(batch: tasks.Batch) -> np.ndarray:
    """Returns of how many answers the score of each sequence is the mean, `[B]`."""
    if "labels" in batch:
        return np.sum(batch["labels"] != NOT_ASKED, axis=-1)
    if "targets" in batch:
        return batch["lengths"] if "lengths" in batch else np.full(len(batch["targets"]), batch["targets"].shape[1])
    return np.ones(len(batch["label"] if "label" in batch else batch["target"]))


def _pass_over(source: tasks.StreamSource, streams: int) -> Iterator[tasks.Batch]:
    """One pass over all pieces, in streams side by side; what fills up the last stream asks for no answers."""
    pieces = -(-len(source) // streams)
    for index in range(pieces):
        rows = []
        for stream in range(streams):
            piece = stream * pieces + index
            row = source[min(piece, len(source) - 1)]
            rows.append(row if piece < len(source) else {**row, "labels": np.full_like(row["labels"], NOT_ASKED)})
        yield {**tasks.collate(rows, ragged=False), "first": np.asarray(index == 0)}


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Yields a list to which SIGINT and SIGTERM add their number; a second one acts as it did before."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: object) -> None:
        del frame
        received.append(number)
        restore()

    for number in previous:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def train(
    task: tasks.Task,
    model: PyTree,
    optimizer: optax.GradientTransformation,
    run_dir: run_directory.StrPath,
    config: TrainConfig,
    *,
    name: str = "model",
) -> TrainResult:
    """Trains a model, or goes on where the last checkpoint in the run directory stands.

    It writes metrics.csv, timing.csv, TensorBoard events, the checkpoints "last" and, where there is a validation
    split, "best", and gradient_flow.npz and .csv.

    Args:
      task: what to learn.
      model: with its initial weights, also where the run goes on.
      optimizer: an optax transformation.
      run_dir: as `run_directory.create` makes it.
      config: what to do when.
      name: of the network in gradient_flow.npz.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the checkpoint "last" has been written.
      NotFinite: a loss or gradient was not finite, and the config says to stop.
      ValueError: the config asks for patience where there is no validation split; or as `batches_of`.
    """
    return _Run(task, model, optimizer, pathlib.Path(run_dir), config, name).run()


class _Run:
    """One session of a run."""

    def __init__(
        self,
        task: tasks.Task,
        model: PyTree,
        optimizer: optax.GradientTransformation,
        run_dir: pathlib.Path,
        config: TrainConfig,
        name: str,
    ):
        if config.patience is not None and task.validation is None:
            raise ValueError(
                f"patience={config.patience} needs a validation split, which the task {task.name!r} has not;"
                " allowed: None."
            )
        self.task, self.run_dir, self.config, self.name = task, run_dir, config, name
        self.stream = batches_of(task, config)
        # A copy of every array, as updates take them over. By way of NumPy it loses JAX's weak types, which do not come
        # back from a checkpoint either, and with which the update would be another program.
        state = initial_state(task, model, optimizer, config)
        self.state = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), state)
        self.names = parameter_names(model)
        self.mesh = batch_mesh(config.devices) if config.devices > 1 else None
        places = None
        if self.mesh is not None:  # the state everywhere, but for what belongs to one sequence
            everywhere, shared = NamedSharding(self.mesh, P()), NamedSharding(self.mesh, P(BATCH))
            places = jax.tree.map(lambda _: everywhere, self.state)
            places = dataclasses.replace(places, carry=jax.tree.map(lambda _: shared, self.state.carry))
            self.state = jax.device_put(self.state, places)
        update = make_update(task, optimizer, config)
        self.update = jax.jit(update, donate_argnums=0, out_shardings=None if places is None else (places, None))
        self.diagnose = jax.jit(partial(diagnose, task))
        self.evaluate = Evaluator(task, self._place)
        self.probe = probe_batch(task, config.batch_size)
        self.best: float | None = None
        self.best_step = 0
        self.stale = 0
        self.profiles: dict[int, dict[str, np.ndarray]] = {}
        self.seconds_before = 0.0
        self.start = time.perf_counter()
        self.step = 0
        self.position = 0
        if run_directory.has_checkpoint(run_dir, "last"):
            self._restore()
        self.first_step = self.step

    def run(self) -> TrainResult:
        config = self.config
        examples = config.steps * config.batch_size
        bar = tqdm.tqdm(
            total=examples, initial=self.step * config.batch_size, unit="example", unit_scale=True, disable=None
        )
        with (
            run_directory.MetricWriter(self.run_dir, self.position) as self.writer,
            bar,
            _deferred_signals() as signals,
            contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh),
        ):
            self.bar = bar
            if self.step == 0:
                self._profile()
            self._train(signals)
            return self._finish()

    def _train(self, signals: list[int]) -> None:
        config = self.config
        # What was read since the device was last waited for, to find out where a number that is not finite began.
        recent: collections.deque[tasks.Batch] = collections.deque()
        shown = self.step
        while self.step < config.steps and not self._out_of_patience():
            batch = next(self.stream)
            recent.append(batch)
            self.state, squares = self.update(self.state, self._place(batch))
            self.step += 1
            last = self.step == config.steps
            logs = last or self.step % LOG_EVERY == 0
            looks = config.profile_every > 0 and (last or self.step % config.profile_every == 0)
            evaluates = last or self.step % config.eval_every == 0
            if not (logs or looks or evaluates or signals):
                continue
            self._check_finite(recent)
            recent.clear()
            if logs:
                self._log()
            if looks:
                self._log_layers(squares)
                self._profile()
            if evaluates:
                self._evaluate()
            if evaluates or signals:
                self._save()
            self.bar.update((self.step - shown) * config.batch_size)
            shown = self.step
            if signals and not last:
                raise Interrupted(signals[0], self.step)

    def _place(self, batch: tasks.Batch) -> tasks.Batch:
        """Puts on each device its share of a batch, if it can be shared out evenly."""
        if self.mesh is None:
            return batch
        everywhere, shared = NamedSharding(self.mesh, P()), NamedSharding(self.mesh, P(BATCH))

        def put(array: Any) -> Array:
            evenly = np.ndim(array) > 0 and len(array) % shared.mesh.size == 0
            return jax.device_put(array, shared if evenly else everywhere)

        return {name: put(array) for name, array in batch.items()}

    def _check_finite(self, recent: collections.deque[tasks.Batch]) -> None:
        bad_step = int(self.state.bad_step)
        if not bad_step or self.config.on_nonfinite == "skip":
            return
        batch = recent[bad_step - 1 - (self.step - len(recent))]
        where = describe_not_finite(self.task, self.config, self.state, batch, bad_step)
        saved = "no checkpoint has been written yet"
        if run_directory.has_checkpoint(self.run_dir, "last"):
            step = run_directory.load_note(self.run_dir, "last")["step"]
            saved = f"the last good checkpoint is {self.run_dir / 'checkpoints' / 'last'}, of step {step}"
        raise NotFinite(f"Stopped at step {bad_step}: {where}; {saved}.")

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.stale >= self.config.patience

    def _log(self) -> None:
        count = int(self.state.loss_count)
        loss = float(self.state.loss_sum) / count if count else math.nan
        self.writer.write(self.step, {"train/loss": loss})
        zero = jnp.zeros_like
        self.state = dataclasses.replace(
            self.state, loss_sum=zero(self.state.loss_sum), loss_count=zero(self.state.loss_count)
        )
        shown = {"loss": f"{loss:.4g}"}
        if self.best is not None:
            shown[f"best {self.task.metric}"] = f"{self.best:.4g}"
        self.bar.set_postfix(shown, refresh=False)

    def _log_layers(self, squares: dict[str, Array]) -> None:
        by_layer: dict[str, np.ndarray] = {}
        of_leaves = np.stack(
            [np.asarray(squares[key], np.float64) for key in ("gradient", "update", "weight")], axis=-1
        )
        for parameter, values in zip(self.names, of_leaves):
            layer = layer_of(parameter)
            by_layer[layer] = by_layer.get(layer, 0.0) + values
        rows = {}
        for layer, (gradient, update, weight) in by_layer.items():
            rows[f"gradient_norm/{layer}"] = math.sqrt(gradient)
            rows[f"update_to_weight/{layer}"] = math.sqrt(update / weight) if weight else math.nan
        self.writer.write(self.step, rows)

    def _profile(self) -> None:
        if self.config.profile_every == 0:
            return
        seen = jax.device_get(self.diagnose(self.state.model, self.probe))
        if seen.log10_norm:
            self.profiles[self.step] = seen.log10_norm
        self.writer.write(self.step, seen.saturation, prefix="saturation")

    def _evaluate(self) -> None:
        rows = {"train/skipped": float(self.state.skipped)} if self.config.on_nonfinite == "skip" else {}
        if self.task.validation is not None:
            score = self.evaluate(self.state.model, self.task.validation)
            rows[f"validation/{self.task.metric}"] = score
            better = self.best is None or (score > self.best if self.task.higher_is_better else score < self.best)
            self.stale = 0 if better else self.stale + 1
            if better:
                self.best, self.best_step = score, self.step
                run_directory.save_checkpoint(self.run_dir, "best", self.state.model, {"step": self.step})
        self.writer.write(self.step, rows)
        seconds = self._seconds()
        rate = (self.step - self.first_step) * self.config.batch_size / (seconds - self.seconds_before)
        with (self.run_dir / "timing.csv").open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write("step,seconds,examples_per_second\n")
            file.write(f"{self.step},{seconds:.3f},{rate:.1f}\n")

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.start

    def _save(self) -> None:
        self._save_profiles()
        note = {
            "step": self.step,
            "stream": self.stream.get_state(),
            "best": self.best,
            "best_step": self.best_step,
            "stale": self.stale,
            "seconds": self._seconds(),
            "position": self.writer.position,
        }
        run_directory.save_checkpoint(self.run_dir, "last", self.state, note)

    def _save_profiles(self) -> None:
        if self.profiles:
            steps, profiles = self._profile_arrays()
            by_seed = {part: array_LT[:, None] for part, array_LT in profiles.items()}
            run_directory.save_profiles(self.run_dir, steps, {self.name: by_seed})

    def _profile_arrays(self) -> tuple[list[int], dict[str, np.ndarray]]:
        steps = sorted(self.profiles)
        parts = self.profiles[steps[0]] if steps else {}
        return steps, {part: np.stack([self.profiles[step][part] for step in steps]) for part in parts}

    def _restore(self) -> None:
        note = run_directory.load_note(self.run_dir, "last")
        self.state = run_directory.restore_checkpoint(self.run_dir, "last", self.state)
        self.stream.set_state(note["stream"])
        self.step, self.position = note["step"], note["position"]
        self.best, self.best_step, self.stale = note["best"], note["best_step"], note["stale"]
        self.seconds_before = note["seconds"]
        self.profiles = {
            step: profile for step, profile in _saved_profiles(self.run_dir, self.name).items() if step <= self.step
        }

    def _finish(self) -> TrainResult:
        model, step = self.state.model, self.step
        if self.task.validation is not None:
            model, step = run_directory.restore_checkpoint(self.run_dir, "best", model), self.best_step
        score = self.evaluate(model, self.task.test)
        self.writer.write(self.step, {f"test/{self.task.metric}": score})
        steps, profiles = self._profile_arrays()
        return TrainResult(
            model, step, self.step, self.best, score, int(self.state.skipped), self._seconds(), steps, profiles
        )


def _saved_profiles(run_dir: pathlib.Path, name: str) -> dict[int, dict[str, np.ndarray]]:
    """The profiles that an earlier session has written, by step and part."""
    path = run_dir / "gradient_flow.npz"
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        parts = {key.removeprefix(f"{name}|"): arrays[key] for key in arrays.files if key != "steps"}
        steps = arrays["steps"].tolist()
    return {step: {part: array_LST[row, 0] for part, array_LST in parts.items()} for row, step in enumerate(steps)}
