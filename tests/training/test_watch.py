"""What a run looks at: the profile and the gate saturation of every layer, each in the order in which it ran."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax import flow, tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.tasks.task import cross_entropy, nats
from rnn_jax.training.watch import certain_lags, diagnose, probe_batch
from tests import reference


def ragged_task(count=40):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, count)
    source = tasks.RaggedSource(
        {"tokens": [rng.integers(1, 9, length).astype(np.int32) for length in lengths]},
        label=rng.integers(0, 3, count).astype(np.int32),
    )
    return tasks.Task(
        name="ragged", description="", source="", train=source, test=source, seq_len=11, in_features=9, out_features=3,
        kind=tasks.Kind.ONE_ANSWER,
        loss=cross_entropy, score=nats, metric="nats", higher_is_better=False, baseline_score=1.0,
        fingerprint={}, reads_tokens=True,
    )  # fmt: skip


def test_the_probe_of_unequal_lengths_is_of_those_that_few_exceed():
    task = ragged_task()
    batch = probe_batch(task, 8)
    expected = np.sort(task.train.lengths)[28:36]  # nine tenths of 40 are 36
    np.testing.assert_array_equal(batch["lengths"], expected)
    assert batch["tokens"].shape == (8, expected[-1])


def test_a_look_is_the_profile_with_lags_from_the_end_of_each_direction_and_the_saturation_of_each_layer():
    task = ragged_task()
    kwargs = {"emb_size": 5, "layers": 2, "bidirectional": True, "param_dtype": jnp.float64}
    model = reference.drawn(lambda: SequenceClassifier("gru", 9, 4, 3, **kwargs, rngs=nnx.Rngs(0)))
    batch = probe_batch(task, 8)

    @reference.quick_jit
    def look(model, batch):
        profile = flow.gradient_profile(task.loss, model, batch, from_true_ends=True)
        return diagnose(task, model, batch), profile.log10_norm

    seen, profile = jax.device_get(look(model, batch))
    assert {layer for layer, _ in seen.log10_norm} == set(profile)
    for (layer, part), found in seen.log10_norm.items():
        expected = np.asarray(profile[layer])
        expected = expected[::-1] if "backward_rnn" in layer else expected
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert part == ""
    lengths = np.asarray(batch["lengths"])
    longer = [np.sum(lengths > lag) for lag in reversed(range(lengths.max()))]
    for count in seen.sequences.values():
        np.testing.assert_array_equal(count, longer)
    assert set(seen.sequences) == set(profile)
    layers = [f"rnn/layers/{k}/{direction}_rnn" for k in (0, 1) for direction in ("forward", "backward")]
    assert set(seen.saturation) == {f"{layer}/{gate}" for layer in layers for gate in ("reset", "update", "candidate")}

    @jax.jit
    def read(model, batch):
        calls = flow.layer_calls(lambda model: task.loss(model, batch), model)
        assert list(calls) == layers
        (lower,) = calls["rnn/layers/0/backward_rnn"]
        assert lower.reverse
        return lower.xs, flow.gate_saturation(lower)["update"], model.embedding(batch["tokens"])

    xs, saturation, embedded = read(model, batch)
    np.testing.assert_array_equal(xs, embedded)
    np.testing.assert_allclose(seen.saturation["rnn/layers/0/backward_rnn/update"], saturation, rtol=1e-6)


def test_lags_that_fewer_than_half_of_the_sequences_reach_are_not_certain():
    assert np.array([1, 2, 3, 4, 7, 7])[certain_lags(np.array([1, 2, 3, 4, 7, 7]))].tolist() == [4, 7, 7]
    assert np.arange(3)[certain_lags(np.full(3, 8))].tolist() == [0, 1, 2]


def test_a_bag_of_embeddings_has_nothing_to_look_at():
    task = ragged_task()
    model = reference.drawn(lambda: SequenceClassifier("gru", 9, 4, 3, emb_size=5, recurrent=False, rngs=nnx.Rngs(0)))
    assert diagnose(task, model, probe_batch(task, 8)) == diagnose(task, {}, {})
