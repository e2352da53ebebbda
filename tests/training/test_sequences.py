"""Runs whose answers are sequences: killed and resumed, on two devices, and the samples that they write."""

import itertools
import shutil

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import Captioner, EncoderDecoder, SequenceClassifier
from rnn_jax.tasks.captions import Captioned, caption_task
from rnn_jax.tasks.translation import translation
from rnn_jax.tasks.vocabulary import build_vocabulary
from rnn_jax.training import checkpoints
from rnn_jax.training.loop import train
from rnn_jax.training.samples import sampler
from tests import reference
from tests.training.small_runs import assert_same_weights, config, metrics, new_run


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def translations():
    """Two words, of different lengths, to be written in capitals; tokens that the model drew are fed, too."""
    words = ("ant", "bee", "tiger", "ox")
    pairs = [(f"{one} {two}", f"{one} {two}".upper()) for one, two in itertools.product(words, words)]
    task = translation(
        name="capitals", description="", source="", license="", packages=(), exact=True,
        splits={"train": pairs[:8], "validation": pairs[8:12], "test": pairs[12:]},
        vocabulary=build_vocabulary([source for source, _ in pairs]),
        answer_vocabulary=build_vocabulary([answer for _, answer in pairs]),
    )  # fmt: skip
    sizes = (task.in_features, task.out_features, 4, 8)
    kinds = {"bidirectional": True, "dropout": 0.1, "scheduled_sampling": 0.3}
    return task, reference.drawn(lambda: EncoderDecoder("gru", *sizes, **kinds, rngs=nnx.Rngs(0)))


def captions():
    """Two features at each of three places, of eight images; one place a word is drawn."""
    images = np.random.default_rng(0).normal(size=(8, 3, 2)).astype(np.float32)
    captioned = Captioned(images, [f"word{k % 3} word{k % 2}" for k in range(8)], np.arange(8))
    splits = dict.fromkeys(("train", "validation", "test"), captioned)
    task = caption_task(name="places", description="", source="", license="", packages=(), **splits)
    return task, reference.drawn(lambda: Captioner("elman", 2, task.out_features, 4, 8, hard=True, rngs=nnx.Rngs(0)))


def sums():
    task = tasks.make_task("addition", digits=1, train_size=64, test_size=8)
    sizes = {"in_features": 11, "hidden_features": 4, "out_features": 10, "emb_size": 4}
    return task, reference.drawn(lambda: SequenceClassifier("grid_lstm", **sizes, per_step=True, rngs=nnx.Rngs(0)))


def session(kind, run_dir, devices=1):
    task, model = kind()
    chosen = config(steps=10, batch_size=4, look_every=0, devices=devices)
    return train(task, model, optax.adam(1e-2), run_dir, chosen, sample=sampler(task)).model


def written(run_dir):
    return {path.name: path.read_bytes() for path in [run_dir / "metrics.csv", *run_dir.glob("samples/*")]}


KINDS = [captions, pytest.param(translations, marks=pytest.mark.slow), pytest.param(sums, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_sequences_that_was_killed_ends_as_one_left_alone(tmp_path, monkeypatch, kind):
    alone, run_dir, save, saved = new_run(tmp_path, "alone"), tmp_path / "run", checkpoints.save_checkpoint, []

    def copying_before_the_second(folder, name, *rest):
        if name == "last":
            saved.append(name)
            if len(saved) == 2:
                shutil.copytree(folder, run_dir)  # as a kill would leave it
        return save(folder, name, *rest)

    monkeypatch.setattr(checkpoints, "save_checkpoint", copying_before_the_second)
    expected = session(kind, alone)
    monkeypatch.undo()
    names = ["metrics.csv", "step-000004.txt", "step-000008.txt", "step-000010.txt"]
    assert sorted(written(alone)) == names
    assert checkpoints.load_note(run_dir, "last")["step"] == 4
    assert_same_weights(session(kind, run_dir), expected)
    assert written(run_dir) == written(alone)


@pytest.mark.slow
@reference.needs_two_devices
@pytest.mark.parametrize("kind", [captions, translations, sums])
def test_a_run_of_sequences_on_two_devices_is_the_run_on_one(tmp_path, kind):
    one, two = (session(kind, new_run(tmp_path, str(devices)), devices) for devices in (1, 2))
    assert_same_weights(two, one, rtol=1e-4)
    one, two = (metrics(tmp_path / str(devices)) for devices in (1, 2))
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)


def test_a_sample_of_sums_shows_what_is_read_the_answer_and_what_the_model_gives():
    task, model = tasks.make_task("addition", digits=2, test_size=5), sums()[1]
    model.head.bias = nnx.Param(np.where(np.arange(10) == 3, np.float32(100.0), np.float32(0.0)))
    parts = sampler(task)(model).strip().split("\n\n")
    assert len(parts) == 5
    for part in parts:
        read, answer, given = (line.split()[1:] for line in part.split("\n"))
        assert read[2] == "10"  # the sign between the numbers
        assert int("".join(read[:2])) + int("".join(read[3:5])) == int("".join(answer))
        assert given == ["3"] * 3
