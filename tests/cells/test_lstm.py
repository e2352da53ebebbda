"""Claims about the LSTM."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import rnn_jax
from rnn_jax.cells.lstm import LSTMCarry
from tests import reference


def make(hidden=4, dtype=jnp.float64, **kwargs):
    return rnn_jax.make_cell("lstm", 2, hidden, rngs=nnx.Rngs(0), param_dtype=dtype, **kwargs)


def biases(cell):
    """Returns the bias of each gate, in the documented order i, f, g, o."""
    return dict(zip(("input", "forget", "candidate", "output"), np.asarray(cell.bias[...]).reshape(4, -1), strict=True))


@pytest.mark.parametrize(("dtype", "tolerance", "layers", "bidirectional", "padded"), reference.torch_cases("lstm"))
def test_lstm_is_torch_lstm(dtype, tolerance, layers, bidirectional, padded):
    reference.check_against_torch("lstm", torch.nn.LSTM, dtype, tolerance, layers, bidirectional, padded)


@pytest.mark.parametrize("flax_cell", ["LSTMCell", "OptimizedLSTMCell"])
def test_lstm_is_flax_lstm(flax_cell):
    reference.check_against_flax("lstm", flax_cell)


def test_a_step_is_the_equations_and_the_gates_are_theirs():
    cell = reference.make_cell("lstm", 2, 3, seed=1)
    x, c, h = (np.asarray(reference.normal(k, 5, size)) for k, size in enumerate((2, 3, 3)))
    W, R, b = (np.asarray(p[...]) for p in (cell.kernel, cell.recurrent_kernel, cell.bias))
    i, f, g, o = np.split(x @ W + h @ R + b, 4, axis=-1)
    i, f, o = (1.0 / (1.0 + np.exp(-z)) for z in (i, f, o))
    c_next = f * c + i * np.tanh(g)
    h_next = o * np.tanh(c_next)
    carry = LSTMCarry(c=jnp.asarray(c), h=jnp.asarray(h))
    result, y = cell(carry, jnp.asarray(x))
    np.testing.assert_allclose(result.c, c_next, rtol=1e-12)
    np.testing.assert_allclose(result.h, h_next, rtol=1e-12)
    np.testing.assert_array_equal(y, result.h)
    gates = cell.gates(carry, jnp.asarray(x))
    for name, expected in {"input": i, "forget": f, "candidate": np.tanh(g), "output": o}.items():
        np.testing.assert_allclose(gates[name], expected, rtol=1e-12)


def test_the_forget_bias_is_one_and_every_other_bias_zero():
    for name, value in biases(make()).items():
        np.testing.assert_array_equal(value, np.full(4, float(name == "forget")))


@pytest.mark.parametrize("value", [0.0, -1.5, 3])
def test_the_forget_bias_can_be_given(value):
    for name, bias in biases(make(forget_bias=value)).items():
        np.testing.assert_array_equal(bias, np.full(4, value if name == "forget" else 0.0))


def test_forget_bias_does_not_change_the_kernels():
    np.testing.assert_array_equal(make(forget_bias=0.0).kernel[...], make(forget_bias=2.0).kernel[...])
    np.testing.assert_array_equal(make(forget_bias=0.0).recurrent_kernel[...], make().recurrent_kernel[...])


@pytest.mark.parametrize("t_max", [3, 20, 1000])
def test_chrono_draws_time_scales_up_to_t_max(t_max):
    bias = biases(make(hidden=400, chrono=t_max, recurrent_kernel_init="zeros"))
    assert np.all(bias["forget"] >= 0.0)
    assert np.all(bias["forget"] <= np.log(t_max - 1))
    np.testing.assert_array_equal(bias["input"], -bias["forget"])
    np.testing.assert_array_equal(bias["candidate"], np.zeros(400))
    np.testing.assert_array_equal(bias["output"], np.zeros(400))
    # exp(b_f) is uniform on [1, t_max - 1]: 400 draws have its mean to 5 standard errors, and fill the range.
    drawn, width = np.exp(bias["forget"]), t_max - 2
    assert abs(np.mean(drawn) - t_max / 2) < 5 * width / np.sqrt(12 * 400)
    assert drawn.min() < 1 + 0.05 * width
    assert drawn.max() > t_max - 1 - 0.05 * width


def test_chrono_and_forget_bias_together_are_refused():
    with pytest.raises(ValueError, match=r"forget_bias=1.0 and chrono=20 both set the bias of the forget gate"):
        make(forget_bias=1.0, chrono=20)


def test_a_bias_initializer_that_is_given_is_the_forget_gates_too():
    ones = nnx.initializers.ones_init()
    np.testing.assert_array_equal(rnn_jax.make_cell("lstm", 2, 3, bias_init="zeros", rngs=nnx.Rngs(0)).bias[...], 0)
    np.testing.assert_array_equal(
        rnn_jax.make_cell("lstm", 2, 2, bias_init=ones, forget_bias=3.0, rngs=nnx.Rngs(0)).bias[...],
        [1, 1, 3, 3, 1, 1, 1, 1],
    )


def test_a_forget_bias_without_a_bias_is_refused():
    with pytest.raises(ValueError, match="use_bias=False leaves no bias"):
        make(use_bias=False, forget_bias=1.0)


@pytest.mark.parametrize("t_max", [2, 1.5, 0, -3, float("nan")])
def test_chrono_refuses_a_time_scale_that_is_none(t_max):
    with pytest.raises(ValueError, match=r"chrono=.* is not a longest time scale; allowed: a number of steps above 2"):
        make(chrono=t_max)


def test_chrono_without_a_bias_is_refused():
    with pytest.raises(ValueError, match=r"use_bias=False leaves no bias .*'forget'; allowed: use_bias=True"):
        make(chrono=20, use_bias=False)


def test_no_bias_is_a_bias_of_zero():
    without, zero = make(use_bias=False), make(forget_bias=0.0)
    assert without.bias is None
    xs = reference.normal(0, 3, 5, 2)
    reference.assert_close(rnn_jax.unroll(without, xs), rnn_jax.unroll(zero, xs), 1e-14)


def test_a_small_increment_is_not_lost_in_a_bfloat16_cell():
    # c grows by 1e-3 a step. Kept in bfloat16, whose numbers near 1 lie 2^-7 apart, it would stand still long before 1.
    steps, grow = 1000, 1e-3
    bias = np.concatenate([[30.0], [30.0], [np.arctanh(grow)], [0.0]])
    cell = rnn_jax.make_cell("lstm", 2, 1, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    cell = reference.with_params(cell, kernel=np.zeros((2, 4)), recurrent_kernel=np.zeros((1, 4)), bias=bias)
    final, ys = rnn_jax.unroll(cell, jnp.zeros((steps, 2), jnp.float32))
    assert final.c.dtype == final.h.dtype == jnp.float32
    assert ys.dtype == jnp.bfloat16
    np.testing.assert_allclose(final.c, [steps * grow], rtol=5e-3)


def test_the_cell_state_decays_by_the_forget_gate_when_gates_are_pinned():
    b_f = np.array([0.0, 1.0, 3.0, 6.0])
    bias = np.concatenate([np.zeros(4), b_f, np.zeros(8)])
    cell = reference.with_params(make(), kernel=np.zeros((2, 16)), recurrent_kernel=np.zeros((4, 16)), bias=bias)
    start = LSTMCarry(c=jnp.ones(4), h=jnp.zeros(4))
    final, _ = rnn_jax.unroll(cell, jnp.zeros((30, 2)), start)
    np.testing.assert_allclose(final.c, (1.0 / (1.0 + np.exp(-b_f))) ** 30, rtol=1e-12)
