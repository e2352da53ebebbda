"""Claims about the bias of truncation: `jax.grad` of the same network with layers that truncate by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import RNN, Stack, Truncated, flow
from tests import reference

T = 7
EVERY = (3, 7)


def network(gradient=None):
    """A layer on the fast path, over it one on the plain scan, in reverse."""
    lower = RNN(reference.make_cell("elman", 2, 2, seed=1), gradient=gradient)
    upper = RNN(reference.make_cell("gru_reset_before", 2, 2, seed=3), gradient=gradient, reverse=True)
    return Stack([lower, upper])


def loss_fn(model, xs, lengths):
    ys = model(xs, seq_lengths=lengths)
    return jnp.mean(jnp.cos(ys)) + jnp.sum(jnp.square(ys[:, 2]))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_cosine_and_norm_ratio_are_those_of_layers_that_truncate():
    xs, lengths = reference.normal(4, 3, T, 2), np.array([7, 5, 2])
    whole, truncated = reference.quick_jit(
        lambda xs: [jax.grad(loss_fn)(network(g), xs, lengths) for g in (None, Truncated(EVERY[0]))]
    )(xs)
    truncated = [truncated, whole]  # 7 steps are all that there are
    bias = reference.quick_jit(lambda model: flow.truncation_bias(loss_fn, model, xs, lengths, every=EVERY))(
        network(Truncated(2))
    )
    np.testing.assert_array_equal(bias.every, EVERY)
    of_layer = {
        "": lambda grads: grads,
        "layers/0": lambda grads: grads.layers[0],
        "layers/1": lambda grads: grads.layers[1],
    }
    assert set(bias.cosine) == set(bias.norm_ratio) == set(of_layer)
    for name, part in of_layer.items():
        g = flat(part(whole))
        for k, grads in enumerate(truncated):
            g_k = flat(part(grads))
            ratio = np.linalg.norm(g_k) / np.linalg.norm(g)
            cosine = g @ g_k / np.linalg.norm(g) / np.linalg.norm(g_k)
            np.testing.assert_allclose(bias.norm_ratio[name][k], ratio, rtol=1e-6)
            np.testing.assert_allclose(bias.cosine[name][k], cosine, rtol=1e-6)
        assert np.min(bias.cosine[name]) < 0.999
    np.testing.assert_allclose(bias.cosine[""][-1], 1.0, rtol=1e-12)


def test_more_lengths_than_fit_at_once_keep_their_order():
    """h' = w h + x, and L = h_T: dL/dw = x w^(T-2) (T - 1) for one input x at the first step, and through the last k
    steps alone x w^(T-2) k, if k divides T; the norm ratio is k / (T - 1)."""
    time = 24
    cell = rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation="identity", use_bias=False)
    cell = reference.with_params(cell, kernel=np.ones((1, 1)), recurrent_kernel=np.full((1, 1), 0.5))
    xs = jnp.zeros((1, time, 1), jnp.float32).at[0, 0].set(1.0)

    def last(model, xs):
        return jnp.sum(model(xs, return_carry=True)[0])

    @reference.quick_jit
    def of_recurrent_kernel(cell):
        grads = [jax.grad(last)(RNN(cell, gradient=Truncated(every)), xs) for every in (6, 24)]
        return [grad.cell.recurrent_kernel[...] for grad in grads]

    bias = reference.quick_jit(lambda model: flow.truncation_bias(last, model, xs, every=range(1, time + 1)))(RNN(cell))
    assert bias.every.shape == bias.cosine["rnn"].shape == (time,)
    of_six, of_all = map(np.asarray, of_recurrent_kernel(cell))
    np.testing.assert_allclose(of_six / of_all, np.full((1, 1), 6 / (time - 1)), rtol=1e-5)
    kept = np.array([k for k in range(1, time) if time % k == 0])
    whole = np.hypot(time - 1, 0.5)  # of w, and of the kernel, which the first step alone reads: x w^(T-1)
    np.testing.assert_allclose(np.asarray(bias.norm_ratio["rnn"])[kept - 1], kept / whole, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(bias.norm_ratio["rnn"])[-1], 1.0, rtol=1e-6)


def test_the_default_lengths_are_powers_of_two_and_the_whole():
    model, xs = RNN(reference.make_cell("elman", 2, 2)), reference.normal(4, 2, 10, 2)
    bias = reference.quick_jit(lambda model: flow.truncation_bias(lambda m: jnp.sum(m(xs)), model))(model)
    np.testing.assert_array_equal(bias.every, [1, 2, 4, 8, 10])


def test_what_cannot_be_measured_is_refused_in_a_sentence():
    model, xs = [RNN(reference.make_cell("elman", 2, 2))], reference.normal(4, 2, 5, 2)

    def total(model, xs):
        return jnp.sum(model[0](xs))

    with pytest.raises(ValueError, match=r"every holds 6; allowed: 1 to 5, the steps of the longest run\."):
        flow.truncation_bias(total, model, xs, every=[6])
    with pytest.raises(
        ValueError, match=r"model is a Linear without recurrent layers; allowed: one with rnn_jax\.RNN\."
    ):
        flow.truncation_bias(total, nnx.Linear(2, 2, rngs=nnx.Rngs(0)), xs)
    with pytest.raises(ValueError, match=r"loss_fn returned float64\[2, 5, 2\]; allowed: a floating-point scalar\."):
        flow.truncation_bias(lambda model, xs: model[0](xs), model, xs)
    with pytest.raises(ValueError, match=r"loss_fn ran no recurrent layer"):
        flow.truncation_bias(lambda model, xs: jnp.sum(xs), model, xs)
    for instrument in (flow.truncation_bias, flow.gradient_noise):
        with pytest.raises(ValueError, match=r"the input of layer '0' is not finite at time step 3 of example 1;"):
            instrument(total, model, xs.at[1, 3].set(jnp.nan))


def test_signal_and_noise_are_those_of_one_gradient_for_each_example():
    model, xs, targets = network(), reference.normal(4, 6, T, 2), reference.normal(5, 6, T, 2)

    def loss(model, xs, targets):
        return jnp.mean(jnp.sum(jnp.square(model(xs) - targets), axis=(1, 2)))

    result = reference.quick_jit(lambda model: flow.gradient_noise(loss, model, xs, targets))(model)
    one = reference.quick_jit(jax.grad(loss))
    xs, targets = np.asarray(xs), np.asarray(targets)
    grads = [one(model, xs[b : b + 1], targets[b : b + 1]) for b in range(6)]
    for name, part in (("", lambda g: g), ("layers/1", lambda g: g.layers[1])):
        rows = np.stack([flat(part(g)) for g in grads])
        signal, variance = np.linalg.norm(rows.mean(0)), np.sum(rows.var(0, ddof=1))
        np.testing.assert_allclose(result.signal[name], signal, rtol=1e-6)
        np.testing.assert_allclose(result.noise[name], np.sqrt(variance), rtol=1e-6)
        np.testing.assert_allclose(result.ratio[name], signal / np.sqrt(variance / 6), rtol=1e-6)
        excess = signal**2 - variance / 6
        np.testing.assert_allclose(result.noise_scale[name], variance / excess if excess > 0 else np.inf, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"begin with \[\(5,\), \(6,\)\]; allowed: one number of examples, 2 or more\."
    ):
        flow.gradient_noise(lambda m, xs, targets: jnp.sum(m(xs)), model, xs, targets[:5])
