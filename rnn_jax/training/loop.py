"""The training loop, of one model or of an ensemble: it survives a kill at any moment and goes on to the same numbers.

Whatever decides about an update is in the checkpoint: weights, optimizer, carried state, the position in the data, the
best score so far. What is random is drawn from (seed, number of the update). `metrics.csv` is cut at the length it had
when the checkpoint was made, and holds nothing that depends on time. A run that was killed and resumed thus leaves the
same bytes as one left alone, on one machine and with the same packages. The checkpoint also has a copy of `metrics.csv`
and of `gradient_flow.npz`, and gives them back where they are damaged.

The device is never waited for but where numbers are logged. Whether loss, gradient and new weights are finite is judged
on the device (`rnn_jax.training.update`). Weights that are not are never the best, and never those of a checkpoint
unless updates are taken as they come.

The members of an ensemble differ in their weights, their optimizer state (so in their learning rate), and their seed:
of the order of the data and of dropout. Each has a best score and a patience of its own, and comes to what a run of its
own would come to, but for rounding. All are updated in one program (`rnn_jax.training.ensemble`), until the last is out
of patience.

What it writes to `metrics.csv`:

    of one model           of a member
    train/loss             <label>/seed<k>/loss
    validation/<metric>    <label>/seed<k>/held_out_<metric>
    test/<metric>          <label>/seed<k>/test_<metric>
    train/skipped          <label>/seed<k>/skipped
    gradient_norm/<layer>, update_to_weight/<layer>, saturation/<layer>/<gate>; of a member behind <label>/seed<k>/
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rnn_jax import tasks
from rnn_jax.tasks.batching import widen
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.config import TrainConfig, batches_of
from rnn_jax.training.ensemble import over_members
from rnn_jax.training.evaluation import Evaluator
from rnn_jax.training.nonfinite import NotFinite, describe_not_finite, finite_members, layer_of, parameter_names
from rnn_jax.training.session import Interrupted, Session, open_session
from rnn_jax.training.update import State, ensemble_state, initial_state, make_update, own_copy
from rnn_jax.training.watch import Diagnostics, certain_lags, diagnose, probe_batch
from rnn_jax.unroll import BATCH, batch_mesh

Array = jax.Array
PyTree = Any

LOG_EVERY = 10
_ROWS_OF_A_MEMBER = {"train": "", "validation": "held_out_", "test": "test_"}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run came to: a number each for one model, an array `[S]` each for an ensemble, but where another is said.

    Attributes:
      model: that of the best evaluation, or the last one if the config says so or there is no validation split.
      step: after how many steps it was that model.
      steps: that were trained.
      validation_score: the best on the validation split; None where there is none.
      test_score: of the model on the test split, which nothing else has looked at.
      skipped: updates left out because they were not finite.
      seconds: of training and evaluation, over all sessions; one number.
      look_steps: `[L]`, at which the gradient flow was looked at.
      profiles: by (layer, part of its carry), `[L, S, time]`, with S = 1 for one model. Of sequences that differ in
        length, the lags that at least half of them reach.
      sequences: of these, for every layer over how many of them the profiles are the mean, `[time]`; else empty.
    """

    model: PyTree
    step: Any
    steps: Any
    validation_score: Any
    test_score: Any
    skipped: Any
    seconds: float
    look_steps: list[int]
    profiles: dict[tuple[str, str], np.ndarray]
    sequences: dict[str, np.ndarray]


def train(
    task: tasks.Task,
    model: PyTree,
    optimizer: optax.GradientTransformation,
    run_dir: run_directory.StrPath,
    config: TrainConfig,
    *,
    name: str = "model",
    sample: Callable[[PyTree], str] | None = None,
) -> TrainResult:
    """Trains a model, or goes on where the last checkpoint in the run directory stands.

    It writes metrics.csv, timing.csv, TensorBoard events, the checkpoints "last" and, where there is a validation
    split, "best", gradient_flow.npz and .csv, and samples/step-<step>.txt at each evaluation.

    Args:
      task: what to learn.
      model: with its initial weights, also where the run goes on.
      optimizer: an optax transformation.
      run_dir: as `run_directory.create` makes it.
      config: what to do when.
      name: of the network in gradient_flow.npz.
      sample: shows, as text, what a model puts out (`rnn_jax.training.samples`); None writes no samples.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the checkpoint "last" has been written.
      NotFinite: a loss, gradient or weight was not finite, and the config says to stop; or no evaluation was of finite
        weights with a score, so that there is no best model.
      ValueError: the config asks for patience where there is no validation split; another process writes to the run
        directory; `Damaged`, if its checkpoints are; or as `batches_of`.
    """
    state = initial_state(task, model, optimizer, config)
    run = _Run(task, state, optimizer, run_dir, config, [name], [config.seed], one_model=True, sample=sample)
    total = config.steps + (config.look == "update")
    bar = tqdm.tqdm(total=total, initial=run.step, unit="example", unit_scale=config.batch_size, disable=None)
    with open_session(run_dir, run.position, bar) as session:
        return run.run(session)


def train_ensemble(
    task: tasks.Task,
    models: PyTree,
    opt_states: PyTree,
    optimizer: optax.GradientTransformation,
    run_dir: run_directory.StrPath,
    config: TrainConfig,
    session: Session,
    *,
    labels: Sequence[str],
    seeds: Sequence[int],
    checkpoint: str,
    sample: Callable[[PyTree], str] | None = None,
) -> TrainResult:
    """Trains S members in one program, one for each label and seed, or goes on where their checkpoint stands.

    It writes metrics.csv, TensorBoard events, its checkpoints, and gradient_flow.npz, where it leaves the profiles of
    other labels as they are; not gradient_flow.csv, which is long: `run_directory.save_profile_table` does. At each
    evaluation it writes samples/<checkpoint>-step-<step>.txt, of the first member.

    Args:
      task: what to learn. Where sequences differ in length, each member reads the batches that a run of its own would
        read, padded to the widest among those of all members.
      models: with their initial weights, `[S, ...]`: all seeds of the first label, then those of the second.
      opt_states: as `optimizer.init` makes them of each member, `[S, ...]`; they may hold different learning rates.
      optimizer: an optax transformation.
      run_dir: as `run_directory.create` makes it.
      config: what to do when; its seed is not used.
      session: opened where the checkpoint's note says "position", behind `rnn_jax.training.resume.load_notes`, which
        gives damaged files back.
      labels: of the members in metrics.csv and gradient_flow.npz: one for each learning rate, for instance.
      seeds: of the order of the data and of dropout.
      checkpoint: the name of the checkpoint; with "-best" behind it, that of the best models.
      sample: as `train`, of one member's model.

    Returns:
      the result, with a members axis in front; the members in the order of `models`.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the checkpoint has been written.
      NotFinite: as `train`, of a member.
      ValueError: as `train`; or the batch is to be spread over devices.
    """
    if config.devices > 1:
        raise ValueError(f"devices={config.devices} spreads the batch of one model; allowed for an ensemble: 1.")
    state = ensemble_state(task, models, opt_states, [*seeds] * len(labels), config)
    return _Run(task, state, optimizer, run_dir, config, labels, seeds, checkpoint, sample=sample).run(session)


@dataclasses.dataclass
class _Member:
    """What has been seen of one member, or of the one model, up to its last evaluation."""

    best: float | None = None
    best_step: int = 0
    stale: int = 0  # evaluations without a better score
    step: int = 0
    skipped: int = 0


class _Run:
    """One session of a run.

    The arrays of one model have no members axis: its program is the plain one. What is logged has one in both cases.
    """

    def __init__(
        self,
        task: tasks.Task,
        state: State,
        optimizer: optax.GradientTransformation,
        run_dir: run_directory.StrPath,
        config: TrainConfig,
        labels: Sequence[str],
        seeds: Sequence[int],
        checkpoint: str = "last",
        *,
        one_model: bool = False,
        sample: Callable[[PyTree], str] | None = None,
    ):
        if config.patience is not None and task.validation is None:
            raise ValueError(
                f"patience={config.patience} needs a validation split, which the task {task.name!r} has not;"
                " allowed: None."
            )
        self.task, self.run_dir, self.config = task, pathlib.Path(run_dir), config
        self.optimizer = optimizer
        self.labels, self.seeds, self.one_model, self.sample = labels, seeds, one_model, sample
        self.last, self.best = checkpoint, "best" if one_model else f"{checkpoint}-best"
        self.names = [f"{label}/seed{seed}" for label in labels for seed in seeds]
        self.members = [_Member() for _ in self.names]
        self.streams = [batches_of(task, dataclasses.replace(config, seed=seed)) for seed in seeds]
        self.parameters = parameter_names(state.model)
        self.mesh = batch_mesh(config.devices) if config.devices > 1 else None
        self.places = None
        if self.mesh is not None:  # the state everywhere, but for what belongs to one sequence
            everywhere, shared = NamedSharding(self.mesh, P()), NamedSharding(self.mesh, P(BATCH))
            places = jax.tree.map(lambda _: everywhere, state)
            self.places = dataclasses.replace(places, carry=jax.tree.map(lambda _: shared, state.carry))
        self.state = self._own(state)
        update, look = make_update(task, optimizer, config), partial(diagnose, task)
        self.update: Callable[..., tuple[State, dict[str, Any]]] = over_members(update, donate_argnums=(0,))
        self.diagnose: Callable[..., Diagnostics] = over_members(look, in_axes=(0, None))
        if one_model:
            out_shardings = None if self.places is None else (self.places, None)
            self.update = jax.jit(update, donate_argnums=0, out_shardings=out_shardings)
            self.diagnose = jax.jit(look)
        self.evaluate = Evaluator(task, self._place, ensemble=not one_model)
        self.probe = probe_batch(task, config.batch_size) if config.look == "probe" else None
        self.best_models: PyTree = None  # of an ensemble
        self.profiles: dict[int, dict[tuple[str, str], np.ndarray]] = {}  # [S, time] each
        self.sequences: dict[str, np.ndarray] = {}  # [time] each
        self.seconds_before = 0.0
        self.start = time.perf_counter()
        self.step = 0
        self.position = 0
        if checkpoints.has_checkpoint(self.run_dir, self.last):
            self._restore()
        self.first_step = self.step

    def run(self, session: Session) -> TrainResult:
        self.session = session
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            self._train()
            if self.config.look == "update" and self.config.look_at:  # at what the last update left
                _, seen = self.update(self._own(self.state), self._place(self._next_batch()))
                self._look_at_update(seen)
                self.session.bar.update()
            return self._finish()

    def _train(self) -> None:
        config, signals = self.config, self.session.signals
        # What was read since the device was last waited for, to find out where a number that is not finite began.
        recent: collections.deque[tasks.Batch] = collections.deque()
        probes = config.look == "probe" and bool(config.look_at)
        if self.step == 0:
            if probes and 0 in config.look_at:
                self._probe()
            if 0 in config.eval_at:
                self._evaluate()
        while self.step < config.steps and self._going():
            batch = self._next_batch()
            if config.on_nonfinite == "stop":
                recent.append(batch)
            self.state, seen = self.update(self.state, self._place(batch))
            if config.look == "update" and self.step in config.look_at:
                self._look_at_update(seen)
            self.step += 1
            self.session.bar.update()
            last = self.step == config.steps
            logs = config.look == "probe" and (last or self.step % LOG_EVERY == 0)
            looks = probes and (last or self.step in config.look_at)
            evaluates = last or self.step in config.eval_at
            keeps = self.step in config.keep_at
            if not (logs or looks or evaluates or keeps or signals):
                continue
            self._check_finite(recent)
            recent.clear()
            if logs:
                self._log()
            if looks:
                self._log_layers(seen)
                self._probe()
            if keeps:
                name = checkpoints.name_at_step(self.last, self.step)
                checkpoints.save_checkpoint(self.run_dir, name, self.state.model, {"step": self.step})
            if evaluates:
                self._evaluate()
            if evaluates or signals:
                self._save()
            if signals and not last:
                raise Interrupted(signals[0], self.step)

    def _going(self) -> list[int]:
        """Returns the members that are not out of patience."""
        patience = self.config.patience
        return [k for k, member in enumerate(self.members) if patience is None or member.stale < patience]

    def _next_batch(self) -> tasks.Batch:
        batches = [next(stream) for stream in self.streams]
        if self.one_model:
            return batches[0]
        if self.task.train.lengths is not None:
            width = max(batch[name].shape[1] for batch in batches for name in ("tokens", "xs") if name in batch)
            batches = [widen(batch, width) for batch in batches]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *batches * len(self.labels))

    def _own(self, state: State) -> State:
        """Copies a state to where updates take it over."""
        state = own_copy(state)
        return state if self.places is None else jax.device_put(state, self.places)

    def _place(self, batch: tasks.Batch) -> tasks.Batch:
        """Puts on each device its share of a batch, if it can be shared out evenly."""
        if self.mesh is None:
            return batch
        everywhere, shared = NamedSharding(self.mesh, P()), NamedSharding(self.mesh, P(BATCH))

        def put(array: Any) -> Array:
            evenly = np.ndim(array) > 0 and len(array) % shared.mesh.size == 0
            return jax.device_put(array, shared if evenly else everywhere)

        return jax.tree.map(put, batch)

    def _by_member(self, tree: PyTree) -> PyTree:
        """Returns NumPy arrays with a members axis in front, also of one model."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None] if self.one_model else leaf, jax.device_get(tree))

    def _row(self, member: int, kind: str, what: str) -> str:
        """Names a number in metrics.csv; the head of this file has the names."""
        if self.one_model:
            return f"{kind}/{what}"
        return f"{self.names[member]}/{_ROWS_OF_A_MEMBER.get(kind, f'{kind}/')}{what}"

    def _check_finite(self, recent: collections.deque[tasks.Batch]) -> None:
        if self.config.on_nonfinite != "stop":
            return
        bad_steps = {k: step for k, step in enumerate(self._by_member(self.state.bad_step).tolist()) if step}
        bad = [k for k in self._going() if k in bad_steps]
        if not bad:
            return
        first = min(bad, key=bad_steps.__getitem__)
        bad_step, state = bad_steps[first], self.state
        batch = recent[bad_step - 1 - (self.step - len(recent))]
        whose = ""
        if not self.one_model:
            state, batch = jax.tree.map(lambda leaf: leaf[first], (state, batch))
            whose = f", member {self.names[first]!r}"
        where = describe_not_finite(self.task, self.optimizer, state, batch, bad_step)
        saved = "no checkpoint has been written yet"
        if checkpoints.has_checkpoint(self.run_dir, self.last):
            step = checkpoints.load_note(self.run_dir, self.last)["step"]
            saved = f"the last good checkpoint is {self.run_dir / 'checkpoints' / self.last}, of step {step}"
        raise NotFinite(f"Stopped at step {bad_step}{whose}: {where}; {saved}.")

    def _log(self) -> None:
        totals, counts = self._by_member((self.state.loss_sum, self.state.loss_count))
        losses = [float(total) / count if count else math.nan for total, count in zip(totals, counts.tolist())]
        self.session.writer.write(self.step, {self._row(k, "train", "loss"): losses[k] for k in self._going()})
        zero = jnp.zeros_like
        self.state = dataclasses.replace(
            self.state, loss_sum=zero(self.state.loss_sum), loss_count=zero(self.state.loss_count)
        )
        self._show(losses)

    def _show(self, losses: Sequence[float] | np.ndarray) -> None:
        shown = {"loss": f"{np.mean(losses):.4g}"}
        best = [member.best for member in self.members if member.best is not None]
        if best:
            shown[f"best {self.task.metric}"] = f"{np.mean(best):.4g}"
        self.session.bar.set_postfix(shown, refresh=False)

    def _log_layers(self, squares: dict[str, Array]) -> None:
        arrays = self._by_member([squares[key] for key in ("gradient", "update", "weight")])
        of_leaves = np.stack([array.astype(np.float64) for array in arrays], axis=-1)  # [S, leaves, 3]
        rows = {}
        for k in self._going():
            by_layer: dict[str, np.ndarray] = {}
            for parameter, values in zip(self.parameters, of_leaves[k]):
                layer = layer_of(parameter)
                by_layer[layer] = by_layer.get(layer, 0.0) + values
            for layer, (gradient, update, weight) in by_layer.items():
                rows[self._row(k, "gradient_norm", layer)] = math.sqrt(gradient)
                rows[self._row(k, "update_to_weight", layer)] = math.sqrt(update / weight) if weight else math.nan
        self.session.writer.write(self.step, rows)

    def _probe(self) -> None:
        seen = self._by_member(self.diagnose(self.state.model, self.probe))
        if seen.log10_norm:
            counts = {layer: count_ST[0] for layer, count_ST in seen.sequences.items()}  # the same of all members
            kept = {layer: certain_lags(count_T) for layer, count_T in counts.items()}
            self.sequences = {layer: count_T[kept[layer]] for layer, count_T in counts.items()}
            self.profiles[self.step] = {
                (layer, part): norm_ST[:, kept.get(layer, slice(None))]
                for (layer, part), norm_ST in seen.log10_norm.items()
            }
        shares = {
            self._row(k, "saturation", gate): share[k] for k in self._going() for gate, share in seen.saturation.items()
        }
        self.session.writer.write(self.step, shares)

    def _look_at_update(self, seen: dict[str, Any]) -> None:
        """Notes what an update has seen of the model before it."""
        seen = self._by_member(seen)
        self.profiles[self.step] = seen["log10_norm"]
        losses = seen["loss"]
        self.session.writer.write(self.step, {self._row(k, "train", "loss"): losses[k] for k in self._going()})
        self._show(losses)

    def _evaluate(self) -> None:
        going, rows = self._going(), {}
        skipped = self._by_member(self.state.skipped).tolist()
        for k in going:
            self.members[k].step, self.members[k].skipped = self.step, skipped[k]
            if self.config.on_nonfinite == "skip":
                rows[self._row(k, "train", "skipped")] = float(skipped[k])
        if self.task.validation is not None:
            scores = self._scores(self.state.model, self.task.validation)
            rows |= {self._row(k, "validation", self.task.metric): scores[k] for k in going}
            better = [k for k in going if self._is_better(scores[k], self.members[k].best)]
            if better:  # an accuracy is finite also where weights are not
                finite = finite_members(self._by_member(self.state.model))
                better = [k for k in better if finite[k]]
            for k in going:
                self.members[k].stale = 0 if k in better else self.members[k].stale + 1
            for k in better:
                self.members[k].best, self.members[k].best_step = scores[k], self.step
            if better and self.config.keep_best:
                self._save_best(better)
        self.session.writer.write(self.step, rows)
        if self.sample is not None:
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            model, name = self.state.model, f"step-{self.step:06d}.txt"
            if not self.one_model:
                model, name = jax.tree.map(lambda leaf: leaf[0], model), f"{self.last}-{name}"
            with run_directory.replacing(folder / name) as temporary:
                temporary.write_text(self.sample(model), encoding="utf-8")
        if self.one_model:
            self._time()

    def _scores(self, model: PyTree, source: tasks.Source) -> list[float]:
        return np.atleast_1d(self.evaluate(model, source)).tolist()

    def _is_better(self, score: float, best: float | None) -> bool:
        if math.isnan(score):
            return False
        return best is None or (score > best if self.task.higher_is_better else score < best)

    def _save_best(self, better: list[int]) -> None:
        model = self.state.model
        if not self.one_model:
            if self.best_models is not None:
                chosen = np.isin(np.arange(len(self.members)), better)

                def choose(new: Array, old: Array) -> np.ndarray:
                    return np.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

                model = jax.tree.map(choose, model, self.best_models)
            self.best_models = model = jax.tree.map(np.array, model)
        checkpoints.save_checkpoint(self.run_dir, self.best, model, {"step": self.step})

    def _time(self) -> None:
        seconds = self._seconds()
        rate = (self.step - self.first_step) * self.config.batch_size / (seconds - self.seconds_before)
        path = self.run_dir / "timing.csv"
        before = path.read_bytes() if path.exists() else b""
        kept = before[: before.rfind(b"\n") + 1] or b"step,seconds,examples_per_second\n"
        with run_directory.replacing(path) as temporary:
            temporary.write_bytes(kept + f"{self.step},{seconds:.3f},{rate:.1f}\n".encode())

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.start

    def _save(self) -> None:
        if self.profiles:
            steps, profiles = self._profile_arrays()
            by_label: dict[str, dict[tuple[str, str], np.ndarray]] = {}
            for i, label in enumerate(self.labels):
                mine = slice(i * len(self.seeds), (i + 1) * len(self.seeds))
                by_label[label] = {name: array_LST[:, mine] for name, array_LST in profiles.items()}
            run_directory.save_profiles(self.run_dir, steps, by_label, self.sequences)
            if self.one_model:
                run_directory.save_profile_table(self.run_dir)
        note = {
            "step": self.step,
            "streams": [stream.get_state() for stream in self.streams],
            "members": [dataclasses.asdict(member) for member in self.members],
            "seconds": self._seconds(),
            "position": self.session.writer.position,
        }
        checkpoints.save_checkpoint(self.run_dir, self.last, self.state, note, checkpoints.COPIED)

    def _restore(self) -> None:
        note = checkpoints.find_checkpoint(self.run_dir, self.last).note
        self.state = checkpoints.restore_checkpoint(self.run_dir, self.last, self.state)
        checkpoints.drop_damaged(self.run_dir, self.last)
        if self.one_model:
            checkpoints.restore_files(self.run_dir, self.last)
        else:  # the session has opened metrics.csv
            self.state = self._own(self.state)  # restored arrays would stay on their device, away from the others
        for stream, state in zip(self.streams, note["streams"]):
            stream.set_state(state)
        self.members = [_Member(**member) for member in note["members"]]
        self.step, self.position, self.seconds_before = note["step"], note["position"], note["seconds"]
        self.profiles = self._saved_profiles()
        if self.one_model and self.profiles:
            run_directory.save_profile_table(self.run_dir)
        if self.config.keep_best and any(member.best is not None for member in self.members):
            self._restore_best()

    def _restore_best(self) -> None:
        """Reads the best models of an ensemble; that of one model is read at the end, and must be whole by then.

        Raises:
          Damaged: it is not, and nothing else holds the same weights.
        """
        try:
            checkpoints.find_checkpoint(self.run_dir, self.best, newest=True)
        except ValueError:
            found = [k for k, member in enumerate(self.members) if member.best is not None]
            steps = {self.members[k].best_step for k in found}
            if steps == {self.step}:  # the state has them
                self._save_best(found)
            elif checkpoints.find_checkpoint(self.run_dir, self.best).note["step"] in steps and self.one_model:
                checkpoints.drop_damaged(self.run_dir, self.best)
            else:
                raise
        if not self.one_model:
            like = jax.tree.map(np.asarray, self.state.model)
            self.best_models = checkpoints.restore_checkpoint(self.run_dir, self.best, like, newest=True)

    def _saved_profiles(self) -> dict[int, dict[tuple[str, str], np.ndarray]]:
        """What an earlier session has looked at, up to the checkpoint: it may have gone on behind it."""
        steps, by_label = run_directory.load_profiles(self.run_dir)
        if not all(label in by_label for label in self.labels):
            return {}
        self.sequences = run_directory.load_sequences(self.run_dir).get(self.labels[0], {})
        names = by_label[self.labels[0]]
        arrays = {name: np.concatenate([by_label[label][name] for label in self.labels], axis=1) for name in names}
        mine = self.config.look_at | {self.config.steps}  # the file may hold more, of other labels
        return {
            step: {name: array_LST[row] for name, array_LST in arrays.items()}
            for row, step in enumerate(steps.tolist())
            if step <= self.step and step in mine
        }

    def _profile_arrays(self) -> tuple[list[int], dict[tuple[str, str], np.ndarray]]:
        steps = sorted(self.profiles)
        names = self.profiles[steps[0]] if steps else {}
        return steps, {name: np.stack([self.profiles[step][name] for step in steps]) for name in names}

    def _finish(self) -> TrainResult:
        model, at = self.state.model, [member.step for member in self.members]
        best = None
        if self.task.validation is not None:
            best = [member.best for member in self.members]
            if self.config.keep_best:
                lost = [name for name, score in zip(self.names, best) if score is None]
                if lost:
                    raise NotFinite(
                        f"The training of {lost[0]!r} ended at step {self.step} without a best model: no evaluation was"
                        f" of finite weights with a finite {self.task.metric}."
                    )
                like = model if self.one_model else jax.tree.map(np.asarray, model)
                model = checkpoints.restore_checkpoint(self.run_dir, self.best, like, newest=True)
                at = [member.best_step for member in self.members]
        scores = self._scores(model, self.task.test)
        for k, member in enumerate(self.members):
            self.session.writer.write(member.step, {self._row(k, "test", self.task.metric): scores[k]})
        steps, profiles = self._profile_arrays()

        def of_members(values: Sequence[Any]) -> Any:
            return values[0] if self.one_model else np.array(values)

        return TrainResult(
            model=model,
            step=of_members(at),
            steps=of_members([member.step for member in self.members]),
            validation_score=None if best is None else of_members(best),
            test_score=of_members(scores),
            skipped=of_members([member.skipped for member in self.members]),
            seconds=self._seconds(),
            look_steps=steps,
            profiles=profiles,
            sequences=self.sequences,
        )
