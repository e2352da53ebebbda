"""The training loop: its updates and scores against plain ones; resumed runs; ensembles."""

import dataclasses
import functools
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tqdm
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.tasks.task import mean_squared_error
from rnn_jax.training import checkpoints
from rnn_jax.training.config import batches_of
from rnn_jax.training.loop import TrainResult, train, train_ensemble
from rnn_jax.training.optimizers import make_ensemble_optimizer
from rnn_jax.training.session import open_session
from rnn_jax.training.step import make_ensemble
from rnn_jax.training.update import initial_state
from tests import reference
from tests.training.small_runs import (
    assert_same_weights,
    config,
    language,
    make_task,
    metrics,
    new_run,
    numbers,
    ragged_regression,
    regression,
    small_model,
)


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


LABELS, RATES, SEEDS = ("fast", "slow"), (1.0, 1e-2), (0, 3)
LEARNING_RATE, MOMENTUM = 0.1, 0.9


def make_member(rngs):
    return SequenceClassifier("elman", 1, 4, 1, dropout=0.2, rngs=rngs)


@functools.cache
def new_members():
    """Returns the models and the states of their optimizers, as they begin."""

    @jax.jit
    def build():
        models = make_ensemble(make_member, [*SEEDS, *SEEDS])
        rates = jnp.repeat(jnp.asarray(RATES, jnp.float32), len(SEEDS))
        return models, jax.vmap(lambda rate, model: make_ensemble_optimizer(rate).init(model))(rates, models)

    return build()


def train_members(task, run_dir, chosen):
    models, opt_states = new_members()
    begun = checkpoints.has_checkpoint(run_dir, "gru")
    position = checkpoints.load_note(run_dir, "gru")["position"] if begun else 0
    with open_session(run_dir, position, tqdm.tqdm(disable=True)) as session:
        return train_ensemble(
            task, models, opt_states, make_ensemble_optimizer(0.0), run_dir, chosen, session,
            labels=LABELS, seeds=SEEDS, checkpoint="gru",
        )  # fmt: skip


@functools.cache
def material(kind):
    """Returns a task and a model; of an ensemble, the members are the model."""
    if kind == "ensemble":
        return ragged_regression(), None
    return language() if kind == "language model" else (regression(), small_model())


def plan(kind, devices=1):
    patience = 1 if kind == "ensemble" else None
    return config(steps=20, batch_size=4, devices=devices, patience=patience, keep_at=frozenset({5, 8}))


def session(kind, run_dir, chosen):
    task, model = material(kind)
    if kind == "ensemble":
        return train_members(task, run_dir, chosen)
    return train(task, model, optax.sgd(LEARNING_RATE, MOMENTUM), run_dir, chosen)


@dataclasses.dataclass(frozen=True)
class Alone:
    """What a run left alone came to, its folder, and the folder as a kill before the third checkpoint leaves it."""

    result: TrainResult
    folder: pathlib.Path
    killed: pathlib.Path


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Trains a model of a kind on some devices, once for all tests that read the run."""

    @functools.cache
    def run(kind, devices):
        folder = tmp_path_factory.mktemp("runs")
        save, saved = checkpoints.save_checkpoint, []

        def copying_before_the_third(run_dir, name, *rest):
            if name in ("last", "gru"):
                saved.append(name)
                if len(saved) == 3:
                    shutil.copytree(run_dir, folder / "killed")
            return save(run_dir, name, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "save_checkpoint", copying_before_the_third)
            result = session(kind, new_run(folder, "alone"), plan(kind, devices))
        return Alone(result, folder / "alone", folder / "killed")

    return run


def test_a_run_is_plain_gradient_steps_on_its_batches(left_alone):
    """With momentum, so that the optimizer has a state."""
    (task, model), chosen, alone = material("classifier"), plan("classifier"), left_alone("classifier", 1)
    loss_and_grads, batches = jax.jit(jax.value_and_grad(task.loss)), batches_of(task, chosen)
    plain, velocity, losses = jax.tree.map(np.asarray, model), jax.tree.map(np.zeros_like, model), []
    for _, batch in zip(range(20), batches):
        loss, grads = jax.device_get(loss_and_grads(plain, batch))
        losses.append(float(loss))
        velocity = jax.tree.map(lambda v, g: np.float32(MOMENTUM) * v + g, velocity, grads)
        plain = jax.tree.map(lambda p, v: p - np.float32(LEARNING_RATE) * v, plain, velocity)
    like = initial_state(task, model, optax.sgd(LEARNING_RATE, MOMENTUM), chosen)
    last = checkpoints.restore_checkpoint(alone.folder, "last", like)
    assert_same_weights(last.model, plain, rtol=1e-5)
    found, result = metrics(alone.folder), alone.result
    np.testing.assert_allclose(found[10, "train/loss"], np.mean(losses[:10]), rtol=1e-5)
    np.testing.assert_allclose(found[20, "train/loss"], np.mean(losses[10:]), rtol=1e-5)
    loss = jax.jit(task.loss)
    np.testing.assert_allclose(found[20, "validation/mse"], loss(plain, tasks.as_batch(task.validation)), rtol=1e-5)
    best = min((score, step) for (step, name), score in found.items() if name == "validation/mse")
    assert (result.validation_score, result.step) == best
    np.testing.assert_allclose(result.test_score, loss(result.model, tasks.as_batch(task.test)), rtol=1e-5)
    assert result.look_steps == [0, 6, 12, 18, 20]
    assert result.profiles["rnn", ""].shape == (5, 1, 6)
    before = jax.tree.map(lambda p, v: p + np.float32(LEARNING_RATE) * v, plain, velocity)
    gradient, update, weight = (
        np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree.rnn)))
        for tree in (grads, velocity, before)
    )
    np.testing.assert_allclose(found[20, "gradient_norm/rnn"], gradient, rtol=1e-4)
    np.testing.assert_allclose(found[20, "update_to_weight/rnn"], LEARNING_RATE * update / weight, rtol=1e-2)


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        ("classifier", 1),
        ("ensemble", 1),
        ("language model", 1),
        pytest.param("language model", 2, marks=[reference.needs_two_devices, pytest.mark.slow]),
    ],
)
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bytes_and_weights(left_alone, tmp_path, kind, devices):
    """And one that keeps its weights on the way trains as one that does not.

    A language model reads its stream in passes of five batches here, and carries its state from one to the next. The
    ensemble reads sequences of different lengths, in batches of two widths.
    """
    own, alone = "gru" if kind == "ensemble" else "last", left_alone(kind, devices)
    run_dir = shutil.copytree(alone.killed, tmp_path / "run")
    assert checkpoints.load_note(run_dir, own)["step"] == 8
    like = jax.tree.map(np.asarray, alone.result.model)
    at_8 = checkpoints.restore_checkpoint(run_dir, own, like, part=".model")
    # To keep another changes nothing else.
    resumed = session(kind, run_dir, dataclasses.replace(plan(kind, devices), keep_at=frozenset({5, 8, 13})))
    assert_same_weights(resumed.model, alone.result.model)
    assert checkpoints.kept_steps(run_dir, own) == [5, 8, 13]
    kept = [checkpoints.restore_checkpoint(run_dir, checkpoints.name_at_step(own, k), like) for k in (5, 8)]
    assert_same_weights(kept[1], at_8)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(kept[0]), jax.tree.leaves(at_8), strict=True))
    with np.load(run_dir / "gradient_flow.npz") as arrays, np.load(alone.folder / "gradient_flow.npz") as expected:
        assert arrays.files == expected.files
        for name in arrays.files:
            np.testing.assert_array_equal(arrays[name], expected[name])
    for name in ("metrics.csv", *(["gradient_flow.csv"] if kind != "ensemble" else [])):
        assert (run_dir / name).read_bytes() == (alone.folder / name).read_bytes()


def test_a_member_of_an_ensemble_comes_to_what_a_run_of_its_own_comes_to(left_alone, tmp_path):
    """Weights, order of the data, dropout, learning rate, best step and patience are each member's own.

    Batches that are padded to the widest of all members are no others.
    """
    (task, _), together, member = material("ensemble"), left_alone("ensemble", 1), 3
    label, rate, seed = LABELS[1], RATES[1], SEEDS[1]
    folder, own = new_run(tmp_path, "alone"), dataclasses.replace(plan("ensemble"), seed=seed, keep_at=frozenset())
    model = jax.jit(lambda key: make_member(nnx.Rngs(key)))(jax.random.key(seed))
    alone = train(task, model, make_ensemble_optimizer(rate), folder, own)
    result = together.result
    assert (result.step[member], result.steps[member]) == (alone.step, alone.steps)
    assert alone.steps > min(result.steps)  # another is out of patience before it
    np.testing.assert_allclose(result.validation_score[member], alone.validation_score, rtol=1e-4)
    assert_same_weights(jax.tree.map(lambda leaf: leaf[member], result.model), alone.model, rtol=1e-3)
    names = {"train/loss": "loss", "validation/mse": "held_out_mse", "test/mse": "test_mse"}
    prefix = f"{label}/seed{seed}/"
    expected = {(step, prefix + names.get(name, name)): value for (step, name), value in metrics(folder).items()}
    found = {(step, name): value for (step, name), value in metrics(together.folder).items() if name.startswith(prefix)}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, err_msg=str(key))


def test_an_ensemble_on_several_devices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="devices=2 spreads the batch of one model; allowed for an ensemble: 1"):
        train_ensemble(
            regression(), None, None, optax.sgd(0.1), tmp_path, config(devices=2), None, labels="a", seeds=[0],
            checkpoint="gru",
        )  # fmt: skip


@reference.needs_two_devices
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_run_on_two_devices_is_the_run_on_one(left_alone, tmp_path, kind):
    one = left_alone(kind, 1)
    two = session(kind, folder := new_run(tmp_path), dataclasses.replace(plan(kind, 2), keep_at=frozenset()))
    assert_same_weights(two.model, one.result.model, rtol=1e-5)
    expected, found = metrics(one.folder), metrics(folder)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


def test_patience_stops_and_the_best_weights_are_tested(tmp_path):
    # Training makes the score worse: what it lowers is the distance to the opposite.
    def opposite(model, batch):
        return mean_squared_error(model, {**batch, "target": -batch["target"]})

    task = regression(loss=opposite)
    chosen = config(steps=400, eval_every=20, patience=2, look_every=0)
    result = train(task, small_model(), optax.adam(1e-2), run_dir := new_run(tmp_path), chosen)
    scores = {step: value for (step, name), value in metrics(run_dir).items() if name == "validation/mse"}
    assert result.step == min(scores, key=scores.get)
    assert result.steps == result.step + 40 < 400
    assert max(step for step, _ in metrics(run_dir)) == result.steps


def test_patience_without_a_validation_split_is_refused(tmp_path):
    task = make_task(tasks.ArraySource(**numbers()))
    with pytest.raises(ValueError, match="patience=2 needs a validation split, which the task 'small' has not"):
        train(task, small_model(), optax.sgd(0.1), new_run(tmp_path), config(patience=2))
