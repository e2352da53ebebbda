"""Instruments on the networks of runs that stand on disk, as `experiments.measure` and `gradient_flow` measure them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import instruments
from rnn_jax import tasks
from rnn_jax.report.read import load_instrument
from rnn_jax.report.run_report import write_report
from rnn_jax.training import checkpoints, grid, run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.config import TrainConfig
from rnn_jax.training.networks import load_networks, stages_of
from rnn_jax.training.optimizers import make_optimizer
from rnn_jax.training.step import make_ensemble
from rnn_jax.training.update import initial_state
from rnn_jax.training.watch import probe_batch
from tests import reference

STAGES = ["initialization", "trained"]
OPTIONS = {"seq_len": 8, "train_size": 64, "test_size": 16}


@pytest.fixture(scope="module")
def task():
    return tasks.make_task("adding", **OPTIONS)


def somewhere(make, seed=0):
    """Weights that training might have led to, of the model that `make()` builds, or the models."""
    return reference.drawn(make, seed, scale=0.3)


def make_run(folder, made, **flags):
    """A run of `experiments.train`, whose network at step 5 is known; returns its folder and the network."""
    flags = {"task": "adding", **OPTIONS, "cell": "elman", "hidden": 4, "recurrent": True, "seed": 3, **flags}
    run_dir = run_directory.create(
        str(folder), {**flags, "data": made.fingerprint}, experiment="train", question="What?"
    )
    settings = ModelSettings.of_flags(flags)
    model = somewhere(lambda: make_model(made.interface, settings, nnx.Rngs(flags["seed"])))
    checkpoints.save_checkpoint(run_dir, "best", model, {"step": 5})
    return run_dir, model


def norms_by_brute_force(task, model, batch):
    """log10 of the batch's root mean square of |dL/d h_t|: a loop over steps, a zero added at each, in float64."""
    model = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model)
    batch = {**batch, "xs": np.asarray(batch["xs"], np.float64)}

    def loss(change_TBH, model, batch):
        def network(xs):
            carry = jnp.zeros_like(change_TBH[0])
            for step in range(xs.shape[1]):
                carry, _ = model.rnn.cell(carry, xs[:, step])
                carry = carry + change_TBH[step]
            return model.head(carry)

        return task.loss(network, batch)

    sequences, steps, _ = batch["xs"].shape
    adjoints_TBH = np.asarray(jax.jit(jax.grad(loss))(np.zeros((steps, sequences, 4)), model, batch))
    return 0.5 * np.log10(np.mean(np.sum(adjoints_TBH**2, axis=-1), axis=-1))


def test_every_instrument_measures_the_trained_network_the_one_it_began_as_and_those_on_the_way(task, tmp_path):
    run_dir, model = make_run(tmp_path / "run", task, steps=5)
    assert stages_of(run_dir) == STAGES
    checkpoints.save_checkpoint(run_dir, "last-step_2", somewhere(lambda: model, seed=2), {"step": 2})
    stages = stages_of(run_dir)
    assert stages == ["initialization", "step_2", "trained"]
    paths = instruments.measure_run(run_dir, list(instruments.INSTRUMENTS), stages, sequences=16)
    assert paths == [run_dir / f"{name}.npz" for name in instruments.INSTRUMENTS]
    for name in instruments.INSTRUMENTS:
        found = load_instrument(run_dir, name)
        layers = {"", "rnn"} if name == "truncation" else {"rnn"}
        assert set(found) == {("elman", stage, layer) for stage in stages for layer in layers}
        for quantities in found.values():
            assert all(len(array) == 1 for array in quantities.values())  # one seed
            assert not any(np.isnan(array).any() for array in quantities.values())

    *figures, report = write_report(run_dir)
    drawn = [path.stem for path in figures]
    assert [name for name in drawn if not name.endswith("_training")] == list(instruments.INSTRUMENTS)
    assert [f"{name}_training" in drawn for name in instruments.INSTRUMENTS] == [False, *[True] * 5]
    text = report.read_text()
    assert text.count("<figcaption>") == len(drawn)
    assert "A figure is missing" not in text


def test_several_seeds_are_measured_each_and_other_stages_stay(task, tmp_path):
    flags = {"task": "adding", **OPTIONS, "cells": "elman,gru", "hidden": 4, "seeds": 2, "seed": 7}
    flags |= {"learning_rate": ["1e-2", "1e-3"], "data": task.fingerprint}
    run_dir = run_directory.create(str(tmp_path / "run"), flags, experiment="gradient_flow")
    make = functools.partial(make_model, task.interface, ModelSettings(cell="elman", hidden=4))
    models = somewhere(lambda: make_ensemble(make, [1, 2, 3, 4]))
    checkpoints.save_checkpoint(run_dir, "elman", models, {"finished": {}, "step": 9})
    checkpoints.save_checkpoint(run_dir, "gru", {"in": jnp.zeros(2)}, {"step": 3})  # in training

    for stage in reversed(STAGES):
        instruments.measure_run(run_dir, ["profile"], [stage], sequences=16)
    found = load_instrument(run_dir, "profile")
    labels = {"initialization": ["elman"], "trained": ["elman at 0.01", "elman at 0.001"]}
    assert set(found) == {(cell, stage, "rnn") for stage in STAGES for cell in labels[stage]}
    member = jax.tree.map(lambda leaf: np.asarray(leaf)[3], models)
    expected_T = norms_by_brute_force(task, member, probe_batch(task, 16))
    measured_T = found["elman at 0.001", "trained", "rnn"]["log10_norm"][1]
    np.testing.assert_allclose(measured_T[:-1], expected_T[:-1], atol=1e-4)
    assert measured_T[-1] == -np.inf  # no further step reads the last carry


def test_a_run_without_a_best_network_is_measured_at_its_last_checkpoint(task, tmp_path):
    run_dir, model = make_run(tmp_path / "run", task)
    (run_dir / "checkpoints" / "best").rename(tmp_path / "gone")
    config = TrainConfig(steps=5, batch_size=8, eval_at=frozenset(), look_at=frozenset())
    state = initial_state(task, model, make_optimizer("adam", 1e-3), config)
    checkpoints.save_checkpoint(run_dir, "last", state, {"step": 5})
    _, networks = load_networks(run_dir, "trained")
    jax.tree.map(lambda one, saved: np.testing.assert_array_equal(one[0], saved), networks["elman"], model)


def test_what_cannot_be_measured_is_said_in_one_sentence(task, tmp_path):
    whole, _ = make_run(tmp_path / "whole", task)
    (tmp_path / "none").mkdir()
    other = run_directory.create(str(tmp_path / "other"), {"seeds": 3})
    empty = run_directory.create(str(tmp_path / "empty"), {"cell": "elman", "recurrent": True})
    known = ", ".join(instruments.INSTRUMENTS)
    for wrong, said in (
        (
            lambda: instruments.parse_instruments(["jacobian", "spectrum"]),
            f"--instruments=jacobian,spectrum: 'spectrum' is no instrument; allowed: {known}.",
        ),
        (lambda: instruments.parse_instruments([]), f"--instruments= names none; allowed: {known}."),
        (
            lambda: load_networks(tmp_path / "none", "trained"),
            f"--run={str(tmp_path / 'none')!r} holds no run; allowed: the folder of a run.",
        ),
        (
            lambda: load_networks(other, "trained"),
            f"--run={str(other)!r} has no networks that can be made again; allowed: a run of experiments.train,"
            " experiments.gradient_flow or experiments.grid_lstm.",
        ),
        (
            lambda: load_networks(empty, "initialization"),
            f"--run={str(empty)!r} has no trained network yet; allowed: experiments.train after a checkpoint,"
            " experiments.gradient_flow or experiments.grid_lstm after its first network.",
        ),
        (
            lambda: load_networks(whole, "step_7"),
            f"--run={str(whole)!r} has no networks at 'step_7'; allowed: initialization, trained.",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            wrong()


def test_a_network_without_recurrent_layers_is_refused(tmp_path):
    tokens = tasks.make_task("temporal_order", **{**OPTIONS, "seq_len": 12})
    run_dir, _ = make_run(tmp_path / "run", tokens, task="temporal_order", seq_len=12, recurrent=False, emb_size=4)
    with pytest.raises(ValueError, match="'bag of embeddings' has no recurrent layer; allowed: one that has"):
        instruments.measure_run(run_dir, ["profile"], ["trained"])


def measure_made_run(folder, names, name, options, **flags):
    """Makes a run of a task that need not be trained, and returns what the instruments showed, by their names."""
    made = tasks.make_task(name, **options)
    flags = {"task": name, **options, "hidden": 3, "emb_size": 2, "seed": 3, "recurrent": True, **flags}
    run_dir = run_directory.create(str(folder), {**flags, "data": made.fingerprint}, experiment="train")
    model = somewhere(lambda: make_model(made.interface, ModelSettings.of_flags(flags), nnx.Rngs(3)))
    checkpoints.save_checkpoint(run_dir, "best", model, {"step": 5})
    instruments.measure_run(run_dir, names, ["trained"], sequences=8)
    return {instrument: load_instrument(run_dir, instrument) for instrument in names}, run_dir


def test_lags_of_a_decoder_count_from_the_last_token_of_each_answer(tmp_path):
    """Names of letters are padded to the longest; those that are measured are shorter."""
    found, _ = measure_made_run(tmp_path / "run", ["profile"], "glyphs", {}, cell="gru")
    of = found["profile"]["gru", "trained", "decoder"]
    norm_T, share_T = of["log10_norm"][0], of["log10_share"][0]
    assert np.isneginf(norm_T[-1])  # no step is behind the last
    assert np.isfinite(norm_T[-2])
    assert np.isfinite(share_T[-1])
    assert np.isneginf(share_T[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "dates", "glyphs", "hard glyphs"])
def test_every_instrument_measures_every_kind_of_network(kind, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog.\n" * 40)
    rnns = [f"encoder/{direction}_rnn" for direction in ("forward", "backward")]
    name, options, flags, layers = {
        "text": (f"text:{text}", {"seq_len": 12}, {"layers": 2}, {"rnn/layers/0", "rnn/layers/1"}),
        "dates": ("dates", {"train_size": 64, "test_size": 8}, {"bidirectional": True}, {*rnns, "decoder"}),
        "glyphs": ("glyphs", {}, {}, {"decoder"}),
        "hard glyphs": ("glyphs", {}, {"hard_attention": True}, {"decoder"}),
    }[kind]
    names = list(instruments.INSTRUMENTS)
    found, run_dir = measure_made_run(tmp_path / "run", names, name, options, cell="gru", **flags)
    for instrument, of in found.items():
        assert {layer for *_, layer in of} == layers | ({""} if instrument == "truncation" else set())
        assert not any(np.isnan(array).any() for quantities in of.values() for array in quantities.values())
    assert [path.stem for path in write_report(run_dir)[:-1]] == names


def test_both_networks_of_a_run_of_grid_lstm_are_measured(tmp_path):
    options = {"digits": 1, "train_size": 32, "test_size": 8}
    task = tasks.make_task("addition", **options)
    flags = {"task": "addition", **options, "hidden": 2, "depth": 2, "shared": True, "priority": "depth", "patch": 2}
    flags |= {"emb_size": 2, "seed": 5, "seeds": 2, "learning_rate": 1e-3, "data": task.fingerprint}
    run_dir = run_directory.create(str(tmp_path / "run"), flags, experiment="grid_lstm")
    networks = grid.make_networks(task, grid.GridSettings.of_flags(flags))
    ensembles = {name: somewhere(lambda make=make: make_ensemble(make, [5, 6])) for name, make in networks.items()}
    for name, models in ensembles.items():
        checkpoints.save_checkpoint(run_dir, name, models, {"finished": {}, "step": 9})
    instruments.measure_run(run_dir, ["gates"], STAGES, sequences=4)
    found = load_instrument(run_dir, "gates")
    layers = [("grid_lstm", "rnn"), ("stacked_lstm", "rnn/layers/0"), ("stacked_lstm", "rnn/layers/1")]
    assert set(found) == {(cell, stage, layer) for cell, layer in layers for stage in STAGES}
    assert found["grid_lstm", "trained", "rnn"]["1/time_forget time_constant"].shape == (2, 2)
    for name, models in load_networks(run_dir, "trained")[1].items():
        jax.tree.map(np.testing.assert_array_equal, models, ensembles[name])
