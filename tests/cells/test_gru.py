"""Claims about the two GRUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import rnn_jax
from tests import reference

BOTH = ["gru", "gru_reset_before"]


def make(name, hidden=4, **kwargs):
    return rnn_jax.make_cell(name, 2, hidden, rngs=nnx.Rngs(0), param_dtype=jnp.float64, **kwargs)


def biases(cell):
    """Returns the rows of the bias in the documented order: r, u, nx, nh, or r, u, n."""
    return np.asarray(cell.bias[...]).reshape(-1, cell.hidden_features)


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


@pytest.mark.parametrize(("dtype", "tolerance", "layers", "bidirectional", "padded"), reference.torch_cases("gru"))
def test_gru_is_torch_gru(dtype, tolerance, layers, bidirectional, padded):
    reference.check_against_torch("gru", torch.nn.GRU, dtype, tolerance, layers, bidirectional, padded)


def test_gru_is_flax_gru():
    reference.check_against_flax("gru", "GRUCell")


def test_a_step_is_the_equations_and_the_gates_are_theirs():
    cell = reference.make_cell("gru", 2, 3, seed=1)
    x, h = np.asarray(reference.normal(0, 5, 2)), np.asarray(reference.normal(1, 5, 3))
    W_r, W_u, W_n = np.split(np.asarray(cell.kernel[...]), 3, axis=-1)
    R_r, R_u, R_n = np.split(np.asarray(cell.recurrent_kernel[...]), 3, axis=-1)
    b_r, b_u, b_nx, b_nh = biases(cell)
    r = sigmoid(x @ W_r + h @ R_r + b_r)
    u = sigmoid(x @ W_u + h @ R_u + b_u)
    n = np.tanh(x @ W_n + b_nx + r * (h @ R_n + b_nh))
    check_step(cell, x, h, r, u, n)


def test_reset_before_is_the_paper():
    """Cho et al. 2014, equations 5 to 8: z is u, and h_tilde is n, whose product takes r * h."""
    cell = reference.make_cell("gru_reset_before", 2, 3, seed=1)
    x, h = np.asarray(reference.normal(0, 5, 2)), np.asarray(reference.normal(1, 5, 3))
    W_r, W_z, W = np.split(np.asarray(cell.kernel[...]), 3, axis=-1)
    U_r, U_z, U = np.split(np.asarray(cell.recurrent_kernel[...]), 3, axis=-1)
    b_r, b_z, b = biases(cell)
    r = sigmoid(x @ W_r + h @ U_r + b_r)
    z = sigmoid(x @ W_z + h @ U_z + b_z)
    h_tilde = np.tanh(x @ W + (r * h) @ U + b)
    check_step(cell, x, h, r, z, h_tilde)


def check_step(cell, x, h, r, u, n):
    carry, y = cell(jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(carry, u * h + (1.0 - u) * n, rtol=1e-12)
    np.testing.assert_array_equal(y, carry)
    gates = cell.gates(jnp.asarray(h), jnp.asarray(x))
    assert set(gates) == {"reset", "update", "candidate"}
    for name, expected in {"reset": r, "update": u, "candidate": n}.items():
        np.testing.assert_allclose(gates[name], expected, rtol=1e-12)


def test_reset_before_over_time_is_the_paper_over_time():
    cell = reference.make_cell("gru_reset_before", 2, 3, seed=1)
    xs = np.asarray(reference.normal(0, 6, 2))
    W, U = np.asarray(cell.kernel[...]), np.asarray(cell.recurrent_kernel[...])
    b_r, b_z, b = biases(cell)
    h, expected = np.zeros(3), []
    for x in xs:
        r = sigmoid(x @ W[:, :3] + h @ U[:, :3] + b_r)
        z = sigmoid(x @ W[:, 3:6] + h @ U[:, 3:6] + b_z)
        h = z * h + (1 - z) * np.tanh(x @ W[:, 6:] + (r * h) @ U[:, 6:] + b)
        expected.append(h)
    final, ys = rnn_jax.unroll(cell, jnp.asarray(xs))
    np.testing.assert_allclose(ys, np.stack(expected), rtol=1e-11)
    np.testing.assert_allclose(final, expected[-1], rtol=1e-11)


def test_before_and_after_differ_unless_the_recurrent_candidate_kernel_is_diagonal():
    """r * (h R_n) = (r * h) R_n for a diagonal R_n, and only then for every h."""
    before = reference.make_cell("gru_reset_before", 2, 3, seed=1)
    R = np.array(before.recurrent_kernel[...])
    after = make("gru", 3)
    x, h = reference.normal(0, 5, 2), reference.normal(1, 5, 3)

    def difference(R):
        a = reference.with_params(before, recurrent_kernel=R)
        bias = np.concatenate([np.asarray(before.bias[...]), np.zeros(3)])
        b = reference.with_params(after, kernel=before.kernel[...], recurrent_kernel=R, bias=bias)
        return float(jnp.max(jnp.abs(a(h, x)[1] - b(h, x)[1])))

    assert difference(R) > 1e-3
    R[:, 6:] = np.diag([1.0, -0.5, 2.0])
    assert difference(R) < 1e-15


@pytest.mark.parametrize("name", BOTH)
def test_the_update_bias_fills_b_u_alone(name):
    np.testing.assert_array_equal(biases(make(name)), np.zeros_like(biases(make(name))))
    rows = biases(make(name, update_bias=1.5))
    np.testing.assert_array_equal(rows[1], np.full(4, 1.5))
    np.testing.assert_array_equal(np.delete(rows, 1, axis=0), 0.0 * np.delete(rows, 1, axis=0))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("t_max", [3, 1000])
def test_chrono_draws_time_scales_up_to_t_max(name, t_max):
    rows = biases(make(name, 400, chrono=t_max, recurrent_kernel_init="zeros"))
    assert np.all(rows[1] >= 0.0)
    assert np.all(rows[1] <= np.log(t_max - 1))
    drawn, width = np.exp(rows[1]), t_max - 2
    assert abs(np.mean(drawn) - t_max / 2) < 5 * width / np.sqrt(12 * 400)
    assert drawn.max() - drawn.min() > 0.9 * width
    assert not np.any(np.delete(rows, 1, axis=0))


@pytest.mark.parametrize("name", BOTH)
def test_chrono_refuses_a_time_scale_that_is_none(name):
    with pytest.raises(ValueError, match=r"chrono=2 is not a longest time scale; allowed: a number of steps above 2"):
        make(name, chrono=2)


@pytest.mark.parametrize("name", BOTH)
def test_chrono_and_update_bias_together_are_refused(name):
    with pytest.raises(ValueError, match=r"update_bias=1.0 and chrono=20 both set the bias of the update gate"):
        rnn_jax.make_cell(name, 2, 3, update_bias=1.0, chrono=20, rngs=nnx.Rngs(0))


def test_a_bias_initializer_that_is_given_is_the_update_gates_too():
    ones = nnx.initializers.ones_init()
    np.testing.assert_array_equal(rnn_jax.make_cell("gru", 2, 3, bias_init=ones, rngs=nnx.Rngs(0)).bias[...], 1)
    both = rnn_jax.make_cell("gru", 2, 1, bias_init=ones, update_bias=3.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(both.bias[...], [1, 3, 1, 1])


def test_no_bias_is_a_bias_of_zero():
    without, zero = make("gru", use_bias=False), make("gru")
    assert without.bias is None
    xs = reference.normal(0, 3, 5, 2)
    reference.assert_close(rnn_jax.unroll(without, xs), rnn_jax.unroll(zero, xs), 1e-14)


@pytest.mark.parametrize("name", BOTH)
def test_the_update_gate_keeps_when_it_is_one(name):
    cell = make(name)
    bias = np.array(cell.bias[...])
    bias[4:8] = 1000.0  # sigmoid is exactly 1
    cell = reference.with_params(cell, bias=bias)
    h = reference.normal(0, 4)
    final, _ = rnn_jax.unroll(cell, reference.normal(1, 20, 2), h)
    np.testing.assert_array_equal(final, h)


@pytest.mark.parametrize("name", BOTH)
def test_the_gradient_falls_by_the_update_gate_when_gates_are_pinned(name):
    b_u = np.array([0.0, 1.0, 3.0, 6.0])
    cell = make(name)
    cell = jax.tree.map(jnp.zeros_like, cell)
    bias = np.zeros_like(biases(cell))
    bias[1] = b_u
    cell = reference.with_params(cell, bias=bias.ravel())
    run = reference.quick_jit(lambda xs, ys, a: rnn_jax.flow.adjoints(cell, xs, ys, carry_cotangent=a))
    result = run(jnp.zeros((4, 30, 2)), jnp.zeros((4, 30, 4)), jnp.eye(4))  # unit k in example k
    slope = np.log10(sigmoid(b_u))
    np.testing.assert_allclose(result.log10_scale, slope[:, None] * np.arange(30)[::-1], rtol=1e-5, atol=1e-6)
