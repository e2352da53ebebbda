"""Claims about the sequence classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax import RNN, Bidirectional, Stack, flow
from rnn_jax.models import SequenceClassifier
from rnn_jax.models.classifier import last_step
from tests import reference

B, T, F, H, C = 3, 5, 2, 4, 6
LENGTHS = np.array([5, 2, 1])


def make(cell="lstm", seed=0, **kwargs):
    return reference.randomised(SequenceClassifier(cell, F, H, C, rngs=nnx.Rngs(seed), **kwargs), seed=1)


def inputs(*batch_shape):
    return reference.normal(2, *(batch_shape or (B,)), T, F, dtype=jnp.float32)


def head(model, last):
    return np.asarray(last, np.float64) @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])


def one_layer(layer, xs, lengths):
    """Runs a layer in the loop of plain Python; returns ys, and what it has put out last."""
    rows = np.arange(len(xs))
    end = np.full(len(xs), T) if lengths is None else np.asarray(lengths)
    if isinstance(layer, RNN):
        _, ys = reference.python_unroll(layer.cell, xs, lengths=lengths)
        return ys, np.asarray(ys)[rows, end - 1]
    _, forward = reference.python_unroll(layer.forward_rnn.cell, xs, lengths=lengths)
    _, backward = reference.python_unroll(layer.backward_rnn.cell, xs, lengths=lengths, reverse=True)
    last = np.concatenate([np.asarray(forward)[rows, end - 1], np.asarray(backward)[:, 0]], axis=-1)
    return jnp.concatenate([forward, backward], axis=-1), last


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, False), (2, True)])
def test_it_reads_what_each_direction_has_put_out_last(layers, bidirectional, lengths):
    model, ys = make(layers=layers, bidirectional=bidirectional), inputs()
    scores = reference.quick_jit(lambda xs: model(xs, lengths))(ys)
    for layer in model.rnn.layers if layers > 1 else [model.rnn]:
        ys, last = one_layer(layer, ys, lengths)
    assert scores.shape == (B, C)
    np.testing.assert_allclose(scores, head(model, last), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padded_steps_change_neither_scores_nor_gradients(bidirectional):
    model = make("gru", bidirectional=bidirectional, layers=2)
    short, long = inputs(), jnp.concatenate([inputs(), jnp.full((B, 7, F), jnp.nan, jnp.float32)], axis=1)

    def loss(model, xs):
        return jnp.sum(jnp.square(model(xs, LENGTHS)))

    run = reference.quick_jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (grads, to_xs) = run(model, long)
    expected_value, (expected_grads, expected_to_xs) = run(model, short)
    reference.assert_close((value, grads), (expected_value, expected_grads), 1e-5)
    reference.assert_close(to_xs[:, :T], expected_to_xs, 1e-5)
    padding = np.arange(T + 7) >= LENGTHS[:, None]
    np.testing.assert_array_equal(np.asarray(to_xs)[padding], 0.0)


def test_full_lengths_are_no_lengths():
    model = make(bidirectional=True)
    reference.assert_close(model(inputs(), np.full(B, T)), model(inputs()), 1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_empty_sequence_has_the_scores_of_zeros(bidirectional):
    model = make(bidirectional=bidirectional)
    scores = model(inputs(), np.array([5, 0, 2]))
    np.testing.assert_allclose(scores[1], model.head.bias[...], rtol=1e-6)
    assert np.all(np.abs(np.asarray(scores[0] - scores[1])) > 1e-4)


@pytest.mark.parametrize("batch_shape", [(), (2, 2)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_any_number_of_batch_axes_will_do(batch_shape, bidirectional):
    model = make(bidirectional=bidirectional)
    xs = reference.normal(2, *batch_shape, T, F, dtype=jnp.float32)
    lengths = np.random.default_rng(0).integers(1, T + 1, batch_shape)
    run = reference.quick_jit(lambda xs, lengths: model(xs, lengths))
    for given in (None, jnp.asarray(lengths)):
        scores = run(xs, given)
        assert scores.shape == (*batch_shape, C)
        for b in np.ndindex(*batch_shape):
            alone = run(xs[b], None if given is None else given[b])
            np.testing.assert_allclose(scores[b], alone, rtol=1e-5, atol=1e-6)


def test_the_cell_takes_its_arguments_from_name_and_keywords():
    model = SequenceClassifier("lstm(forget_bias=3)", F, H, C, rngs=nnx.Rngs(0), use_bias=True)
    np.testing.assert_array_equal(model.rnn.cell.bias[...][H : 2 * H], np.full(H, 3.0))


def test_it_is_built_of_the_layers_asked_for():
    assert isinstance(make().rnn, RNN)
    assert isinstance(make(bidirectional=True).rnn, Bidirectional)
    stack = make(layers=3, bidirectional=True).rnn
    assert isinstance(stack, Stack)
    assert [type(layer) for layer in stack.layers] == [Bidirectional] * 3


def test_the_same_seed_builds_the_same_model():
    one, same = (SequenceClassifier("gru", F, H, C, layers=2, rngs=nnx.Rngs(0)) for _ in range(2))
    reference.assert_close(one, same, 0.0)


def test_no_layers_and_unknown_cells_are_refused():
    with pytest.raises(ValueError, match="layers=0 is no number of layers; allowed: 1 or more"):
        make(layers=0)
    with pytest.raises(ValueError, match=r"unknown cell 'ltsm'; allowed: .*lstm"):
        make("ltsm")


@pytest.mark.parametrize("kwargs", [{"dtype": jnp.bfloat16}, {"param_dtype": jnp.float64}], ids=list)
def test_a_dtype_of_the_cell_fits_the_head(kwargs):
    """Under strict promotion too, where bfloat16 outputs and float32 weights do not mix of themselves."""
    model = SequenceClassifier("lstm", F, H, C, rngs=nnx.Rngs(0), **kwargs)
    xs = inputs().astype(kwargs.get("param_dtype", jnp.float32))
    assert np.isfinite(np.asarray(model(xs), np.float64)).all()


def test_its_loss_has_a_gradient_profile():
    model, label = make(layers=2), jnp.array([0, 3, 5])

    def loss(model, xs):
        log_p = jax.nn.log_softmax(model(xs, LENGTHS))
        return -jnp.mean(jnp.take_along_axis(log_p, label[:, None], axis=-1))

    profile = reference.quick_jit(lambda model, xs: flow.gradient_profile(loss, model, xs))(model, inputs())
    top = np.asarray(profile.log10_norm["rnn/layers/1"])
    assert np.all(np.isfinite(top[:-1]))
    assert top[-1] == -np.inf  # the top layer's last carry is read by nothing
    reference.assert_close(profile.grads, reference.quick_jit(jax.grad(loss))(model, inputs()), 1e-5)


def test_the_last_step_is_the_last_true_one():
    ys = jnp.arange(24.0).reshape(2, 4, 3)
    np.testing.assert_array_equal(last_step(ys), ys[:, -1])
    np.testing.assert_array_equal(last_step(ys, jnp.array([2, 4])), jnp.stack([ys[0, 1], ys[1, 3]]))
    np.testing.assert_array_equal(last_step(ys, jnp.array([0, 1])), ys[:, 0])
    np.testing.assert_array_equal(last_step(ys[0], jnp.array(3)), ys[0, 2])
