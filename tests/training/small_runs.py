"""Tasks, models and plans small enough to train in a test, and what a test reads of a run."""

import csv

import jax
import numpy as np
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import LanguageModel, SequenceClassifier
from rnn_jax.tasks.task import cross_entropy, mean_squared_error, nats, squared_error
from rnn_jax.training import run_directory
from rnn_jax.training.config import TrainConfig, every
from tests import reference


def make_task(train, test=None, validation=None, **changes):
    example = train[0]
    reads_tokens = "tokens" in example
    return tasks.Task(
        **{
            "name": "small",
            "description": "",
            "source": "",
            "train": train,
            "test": test or train,
            "validation": validation,
            "kind": tasks.Kind.ONE_ANSWER,
            "seq_len": 6,
            "in_features": 7 if reads_tokens else 1,
            "out_features": 1,
            "loss": mean_squared_error,
            "score": squared_error,
            "metric": "mse",
            "higher_is_better": False,
            "baseline_score": 1.0,
            "fingerprint": {},
            "reads_tokens": reads_tokens,
            **changes,
        }
    )


def numbers(count=32, seed=0):
    xs = np.random.default_rng(seed).normal(size=(count, 6, 1)).astype(np.float32)
    return {"xs": xs, "target": xs[:, 0].copy()}


def regression(**changes):
    return make_task(tasks.ArraySource(**numbers()), validation=tasks.ArraySource(**numbers(seed=1)), **changes)


def ragged_regression():
    """The same task on sequences of 2 to 6 steps, whose batches have two widths."""

    def source(seed):
        data = numbers(seed=seed)
        lengths = np.random.default_rng(seed).integers(2, 7, len(data["xs"]))
        return tasks.RaggedSource({"xs": [x[:n] for x, n in zip(data["xs"], lengths)]}, target=data["target"])

    return make_task(source(0), validation=source(1))


def small_model(cell="gru(update_bias=1)"):
    return reference.drawn(lambda: SequenceClassifier(cell, 1, 4, 1, rngs=nnx.Rngs(0)))


def language():
    tokens = np.random.default_rng(0).integers(0, 7, 6 * 20 + 1).astype(np.int32)
    source = tasks.StreamSource(tokens, 6)
    changes = {"loss": cross_entropy, "score": nats, "out_features": 7, "kind": tasks.Kind.STREAM}
    return make_task(source, **changes), reference.drawn(lambda: LanguageModel("gru", 7, 5, 4, rngs=nnx.Rngs(0)))


def config(*, steps=12, eval_every=4, look_every=6, **changes):
    look_at = frozenset({0}) | every(look_every, steps) if look_every else frozenset()
    changes = {"batch_size": 8, "eval_at": every(eval_every, steps), "look_at": look_at, **changes}
    return TrainConfig(steps=steps, **changes)


def new_run(tmp_path, name="run"):
    return run_directory.create(str(tmp_path / name), {})


def metrics(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


def assert_same_weights(a, b, rtol=0.0):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)
