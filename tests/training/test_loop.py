"""The training loop: its updates and scores against plain ones; resumed runs; ensembles."""

import dataclasses
import functools
import operator
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
from rnn_jax.training.loop import train, train_ensemble
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


def test_a_run_is_plain_gradient_steps_on_its_batches(tmp_path):
    task, model, optimizer, chosen = regression(), small_model(), optax.sgd(0.1), config()
    result = train(task, model, optimizer, run_dir := new_run(tmp_path), chosen)
    plain, losses, loss_and_grads = model, [], jax.jit(jax.value_and_grad(task.loss))
    for _, batch in zip(range(12), batches_of(task, chosen)):
        loss, grads = loss_and_grads(plain, batch)
        losses.append(float(loss))
        plain = jax.tree.map(lambda p, g: p - 0.1 * g, plain, grads)
    last = checkpoints.restore_checkpoint(run_dir, "last", initial_state(task, model, optimizer, chosen))
    assert_same_weights(last.model, plain, rtol=1e-5)
    found = metrics(run_dir)
    np.testing.assert_allclose(found[10, "train/loss"], np.mean(losses[:10]), rtol=1e-5)
    np.testing.assert_allclose(found[12, "train/loss"], np.mean(losses[10:]), rtol=1e-5)
    np.testing.assert_allclose(
        found[12, "validation/mse"], task.loss(plain, tasks.as_batch(task.validation)), rtol=1e-5
    )
    best = min((score, step) for (step, name), score in found.items() if name == "validation/mse")
    assert (result.validation_score, result.step) == best
    np.testing.assert_allclose(result.test_score, task.loss(result.model, tasks.as_batch(task.test)), rtol=1e-5)
    assert result.look_steps == [0, 6, 12]
    assert result.profiles["rnn", ""].shape == (3, 1, 6)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads.rnn)))
    weight = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(plain.rnn)))
    np.testing.assert_allclose(found[12, "gradient_norm/rnn"], norm, rtol=1e-4)
    np.testing.assert_allclose(found[12, "update_to_weight/rnn"], 0.1 * norm / weight, rtol=1e-2)


LABELS, RATES, SEEDS = ("fast", "slow"), (1.0, 1e-2), (0, 3)


def make_member(rngs):
    return SequenceClassifier("gru(update_bias=1)", 1, 4, 1, dropout=0.2, rngs=rngs)


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


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        ("classifier", 1),
        ("ensemble", 1),
        ("language model", 1),
        pytest.param("language model", 2, marks=[reference.needs_two_devices, pytest.mark.slow]),
    ],
)
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bytes_and_weights(tmp_path, monkeypatch, kind, devices):
    """And one that keeps its weights on the way trains as one that does not.

    A language model reads its stream in passes of five batches here, and carries its state from one to the next. The
    ensemble reads sequences of different lengths, in batches of two widths.
    """
    task, model = language() if kind == "language model" else (regression(), small_model())
    task = ragged_regression() if kind == "ensemble" else task
    chosen = config(steps=20, batch_size=4, devices=devices)
    own = "gru" if kind == "ensemble" else "last"

    def session(run_dir):
        if kind == "ensemble":
            return train_members(task, run_dir, chosen)
        return train(task, model, optax.adam(1e-2), run_dir, chosen)

    run_dir, chosen = tmp_path / "run", dataclasses.replace(chosen, keep_at=frozenset({5, 8}))
    save, saved = checkpoints.save_checkpoint, []

    def copying_before_the_third(folder, name, *rest):
        if name == own:
            saved.append(name)
            if len(saved) == 3:
                shutil.copytree(folder, run_dir)  # as a kill would leave it
        return save(folder, name, *rest)

    monkeypatch.setattr(checkpoints, "save_checkpoint", copying_before_the_third)
    alone = session(new_run(tmp_path, "alone"))
    monkeypatch.undo()
    chosen = dataclasses.replace(chosen, keep_at=frozenset({5, 8, 13}))  # to keep another changes nothing else
    assert checkpoints.load_note(run_dir, own)["step"] == 8
    like = jax.tree.map(np.asarray, alone.model)
    at_8 = checkpoints.restore_checkpoint(run_dir, own, like, part=".model")
    resumed = session(run_dir)
    assert_same_weights(resumed.model, alone.model)
    assert checkpoints.kept_steps(run_dir, own) == [5, 8, 13]
    kept = [checkpoints.restore_checkpoint(run_dir, checkpoints.name_at_step(own, k), like) for k in (5, 8)]
    assert_same_weights(kept[1], at_8)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(kept[0]), jax.tree.leaves(at_8), strict=True))
    with np.load(run_dir / "gradient_flow.npz") as arrays, np.load(tmp_path / "alone/gradient_flow.npz") as expected:
        assert arrays.files == expected.files
        for name in arrays.files:
            np.testing.assert_array_equal(arrays[name], expected[name])
    for name in ("metrics.csv", *(["gradient_flow.csv"] if kind != "ensemble" else [])):
        assert (run_dir / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_member_of_an_ensemble_comes_to_what_a_run_of_its_own_comes_to(tmp_path):
    """Weights, order of the data, dropout, learning rate, best step and patience are each member's own.

    Batches that are padded to the widest of all members are no others.
    """
    task, chosen, member = ragged_regression(), config(steps=40, patience=1, eval_every=8, look_every=20), 3
    label, rate, seed = LABELS[1], RATES[1], SEEDS[1]
    together = train_members(task, run_dir := new_run(tmp_path), chosen)
    model = make_member(nnx.Rngs(jax.random.key(seed)))
    folder, own = new_run(tmp_path, "alone"), dataclasses.replace(chosen, seed=seed)
    alone = train(task, model, make_ensemble_optimizer(rate), folder, own)
    assert (together.step[member], together.steps[member]) == (alone.step, alone.steps)
    assert alone.steps > min(together.steps)  # another is out of patience before it
    np.testing.assert_allclose(together.validation_score[member], alone.validation_score, rtol=1e-4)
    assert_same_weights(jax.tree.map(operator.itemgetter(member), together.model), alone.model, rtol=1e-3)
    names = {"train/loss": "loss", "validation/mse": "held_out_mse", "test/mse": "test_mse"}
    prefix = f"{label}/seed{seed}/"
    expected = {(step, prefix + names.get(name, name)): value for (step, name), value in metrics(folder).items()}
    found = {(step, name): value for (step, name), value in metrics(run_dir).items() if name.startswith(prefix)}
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
def test_a_run_on_two_devices_is_the_run_on_one(tmp_path, kind):
    task, model = language() if kind == "language model" else (regression(), small_model())
    one, two = (
        train(task, model, optax.sgd(0.1), new_run(tmp_path, str(n)), config(batch_size=4, devices=n)) for n in (1, 2)
    )
    assert_same_weights(two.model, one.model, rtol=1e-5)
    one, two = (metrics(tmp_path / str(n)) for n in (1, 2))
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)


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
