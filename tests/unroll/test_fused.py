"""The fast path against its twin, the plain scan: two programs for one function."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import Checkpointed, Truncated, Whole, flow
from rnn_jax.unroll import fused, unroll

POINTWISE = [name for name in rnn_jax.list_cells() if rnn_jax.cell_info(name).recurrence == "pointwise"]
F, H = 3, 4


def make(name, param_dtype=jnp.float64, **kwargs):
    return rnn_jax.make_cell(name, F, H, rngs=nnx.Rngs(0), param_dtype=param_dtype, **kwargs)


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_trees_close(actual, expected, **tolerance):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerance)


def outputs_and_gradients(cell, xs, carry, method, **kwargs):
    """Final carry, ys, and the gradients with respect to cell, inputs and initial carry of a loss of all of them."""

    @jax.jit
    def run(cell, xs, carry):
        def loss(cell, xs, carry):
            final, ys = unroll(cell, xs, carry, method=method, **kwargs)
            weights = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
            return jnp.sum(weights * ys) + sum(jnp.sum(jnp.sin(part)) for part in jax.tree.leaves(final)), (final, ys)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(cell, xs, carry)

    return run(cell, xs, carry)


IND_RNN = "tests.user_cells:IndRNNCell"


@pytest.mark.parametrize(
    ("name", "batch", "time", "padded", "reset", "reverse"),
    [("lstm", (), 1, False, False, False), ("lstm", (2, 2), 6, True, False, False),
     ("lstm", (3,), 37, True, True, False), ("lstm", (3,), 7, True, True, True),
     ("gru", (2, 2), 6, True, False, False), ("gru", (3,), 7, True, True, True),
     (IND_RNN, (), 5, False, True, False), (IND_RNN, (3,), 7, False, False, True)],
)  # fmt: skip
def test_fast_is_plain(name, batch, time, padded, reset, reverse):
    cell, xs = make(name), draw(*batch, time, F)
    carry = jax.tree.map(lambda part: draw(*part.shape, seed=1), cell.initialize_carry((*batch, F)))
    rng = np.random.default_rng(2)
    kwargs = {
        "lengths": jnp.asarray(rng.integers(0, time + 1, batch)) if padded else None,
        "resets": jnp.asarray(rng.random((*batch, time)) < 0.4) if reset else None,
        "reverse": reverse,
    }
    fast, plain = (outputs_and_gradients(cell, xs, carry, method, **kwargs) for method in ("auto", "scan"))
    assert_trees_close(fast, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "wide", "reverse"),
    [("lstm", 0, True), ("gru", 0, False), ("elman", 2**22, False), ("gru", 2**22, True)],
)
def test_fast_is_plain_over_several_segments_whether_preactivations_are_kept_or_not(name, wide, reverse, monkeypatch):
    monkeypatch.setattr(fused, "_SEGMENT_BYTES", 1000)  # two or three steps
    monkeypatch.setattr(fused, "_SHORT_BYTES", 0)
    monkeypatch.setattr(fused, "_WIDE", wide)  # if the cell is, they are kept
    cell, xs = make(name), draw(3, 12 if reverse else 11, F)  # segments divide it, or do not
    carry = cell.initialize_carry((3, F))
    fast, plain = (outputs_and_gradients(cell, xs, carry, method, reverse=reverse) for method in ("auto", "scan"))
    assert_trees_close(fast, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
def test_fast_is_plain_in_lower_precision(dtype, tolerance):
    cell, xs = make("lstm", dtype), draw(3, 6, F, dtype=dtype)
    carry = cell.initialize_carry((3, F))
    fast, plain = (outputs_and_gradients(cell, xs, carry, method) for method in ("auto", "scan"))
    assert {leaf.dtype for leaf in jax.tree.leaves(fast)} == {jnp.dtype(dtype)}
    assert_trees_close(fast, plain, rtol=tolerance, atol=tolerance)


def test_products_in_bfloat16_leave_the_state_in_float32():
    cell = make("lstm", jnp.float32, dtype=jnp.bfloat16)
    for method in ("auto", "scan"):
        carry, ys = unroll(cell, draw(3, 6, F, dtype=jnp.float32), method=method)
        assert ys.dtype == jnp.bfloat16
        assert carry.c.dtype == carry.h.dtype == jnp.float32


def test_the_fast_path_runs_for_affine_cells_and_only_for_them(monkeypatch):
    ran = []

    def spy(cell, *args, **kwargs):
        ran.append(type(cell).__name__)
        return fused.scan_fused(cell, *args, **kwargs)

    monkeypatch.setattr(sys.modules["rnn_jax.unroll"], "scan_fused", spy)  # the name is the function, too

    def loss(cell, xs):
        return jnp.sum(unroll(cell, xs)[1])

    for name in [*rnn_jax.list_cells(), "flax.nnx:GRUCell"]:
        cell = jax.eval_shape(lambda name=name: make(name))
        jax.eval_shape(jax.grad(loss, allow_int=True), cell, jax.ShapeDtypeStruct((2, 3, F), jnp.float64))
    assert ran == [rnn_jax.cell_info(name).cls.__name__ for name in POINTWISE]


def test_second_derivatives_are_those_of_the_plain_path():
    cell, xs = make("lstm"), draw(4, F)

    def loss(method, x0):
        return jnp.sum(unroll(cell, xs.at[0].set(x0), method=method)[1] ** 2)

    @functools.partial(jax.jit, static_argnums=0)
    def reverse_and_forward_over_reverse(method, x0):
        gradient = jax.grad(functools.partial(loss, method))
        return jax.jacrev(gradient)(x0), jax.jacfwd(gradient)(x0)

    fast, plain = (reverse_and_forward_over_reverse(method, xs[0]) for method in ("auto", "scan"))
    assert_trees_close(fast, plain, rtol=1e-8, atol=1e-12)


class PeepholeLike(rnn_jax.PointwiseCell):
    """A pointwise cell whose elementwise part has a parameter, and whose recurrent matrix is made of another."""

    input_gates = recurrent_gates = ("u", "n")

    def __init__(self, in_features, hidden_features, *, rngs, **kwargs):
        super().__init__(in_features, hidden_features, rngs=rngs, **kwargs)
        self.peephole = nnx.Param(jnp.linspace(-1.0, 1.0, hidden_features, dtype=self.param_dtype))

    def weights(self):
        kernel, recurrent_kernel, bias = super().weights()
        return kernel, jnp.tanh(recurrent_kernel), bias

    def activate(self, z, carry):
        u = jax.nn.sigmoid(z["u"] + self.peephole[...].reshape((1,) * (carry.ndim - 1) + (-1,)) * carry)
        return {"u": u, "n": jnp.tanh(z["n"])}

    def pointwise(self, z, carry):
        gates = self.activate(z, carry)
        h = gates["u"] * carry + (1.0 - gates["u"]) * gates["n"]
        return h, 2.0 * h


def test_parameters_outside_the_products_get_their_gradients():
    cell = PeepholeLike(F, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    xs, carry = draw(3, 6, F), cell.initialize_carry((3, F))
    fast, plain = (outputs_and_gradients(cell, xs, carry, method) for method in ("auto", "scan"))
    assert_trees_close(fast, plain, rtol=1e-9, atol=1e-12)
    assert np.all(np.abs(fast[1][0].peephole[...]) > 1e-6)


def test_the_profile_sees_through_recomputed_segments():
    def norms(**how):
        layer, xs = rnn_jax.RNN(make("lstm"), **how), draw(2, 300, F)
        run = jax.jit(lambda layer: flow.gradient_profile(lambda layer: jnp.sum(layer(xs)[:, -1]), layer))
        return run(layer).log10_norm["rnn"]

    plain = norms(method="scan")
    assert plain[0] < -20  # beyond what one segment's scale could hold in float32 squares
    for gradient in (Whole(), Checkpointed(4)):
        np.testing.assert_allclose(norms(gradient=gradient), plain, atol=1e-4)


@pytest.mark.parametrize("method", [Checkpointed, Truncated])
def test_impossible_pieces_are_refused(method):
    with pytest.raises(ValueError, match=r"^every=0 is no number of steps; allowed: 1 or more"):
        method(0)
