"""Claims about the Elman cell and the IRNN."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import rnn_jax
from tests import reference

FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.mark.parametrize(("dtype", "tolerance", "layers", "bidirectional", "padded"), reference.torch_cases("elman"))
def test_elman_is_torch_rnn(dtype, tolerance, layers, bidirectional, padded):
    reference.check_against_torch("elman", torch.nn.RNN, dtype, tolerance, layers, bidirectional, padded)


def test_elman_with_relu_is_torch_rnn_with_relu():
    def make_layer(*args, **kwargs):
        return torch.nn.RNN(*args, nonlinearity="relu", **kwargs)

    reference.check_against_torch("elman", make_layer, "float64", 1e-10, 1, False, False, activation="relu")


def test_elman_is_flax_simple_cell():
    reference.check_against_flax("elman", "SimpleCell")


def test_a_step_is_the_equation():
    cell = reference.make_cell("elman", 2, 3, seed=1)
    x, h = np.asarray(reference.normal(0, 5, 2)), np.asarray(reference.normal(1, 5, 3))
    W, R, b = (np.asarray(p[...]) for p in (cell.kernel, cell.recurrent_kernel, cell.bias))
    expected = np.tanh(x @ W + h @ R + b)
    carry, y = cell(jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(carry, expected, rtol=1e-12)
    np.testing.assert_array_equal(y, carry)
    np.testing.assert_array_equal(cell.gates(jnp.asarray(h), jnp.asarray(x))["candidate"], carry)


ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda z: np.where(z > 0, z, 0.0),
    "sigmoid": lambda z: 1.0 / (1.0 + np.exp(-z)),
    "identity": lambda z: z,
    "softsign": lambda z: z / (1.0 + np.abs(z)),
    "hard_tanh": lambda z: np.where(z > 1, 1.0, np.where(z < -1, -1.0, z)),
    "gelu": lambda z: 0.5 * z * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3))),
    "sin": np.sin,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_the_function_of_its_name(name):
    z = np.linspace(-3.0, 3.0, 13).reshape(13, 1)
    cell = rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation=name, **FLOAT64)
    cell = reference.with_params(cell, kernel=np.ones((1, 1)))
    _, y = cell(jnp.zeros((13, 1)), jnp.asarray(z))
    np.testing.assert_allclose(y, ACTIVATIONS[name](z), rtol=1e-12, atol=1e-15)


def test_an_activation_may_be_a_function():
    cell = rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation=jnp.square, **FLOAT64)
    cell = reference.with_params(cell, kernel=np.ones((1, 1)))
    np.testing.assert_array_equal(cell(jnp.zeros((1,)), jnp.full((1,), 3.0))[1], [9.0])


def test_an_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"activation='tan' is unknown; allowed: tanh, relu, .*, or a function\."):
        rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation="tan")


def test_irnn_starts_with_the_identity_and_rectifies():
    cell = rnn_jax.make_cell("irnn", 2, 3, rngs=nnx.Rngs(0), **FLOAT64)
    np.testing.assert_array_equal(cell.recurrent_kernel[...], np.eye(3))
    np.testing.assert_array_equal(cell.bias[...], np.zeros(3))
    carry, _ = cell(jnp.array([1.0, -2.0, 3.0]), jnp.zeros(2))
    np.testing.assert_array_equal(carry, [1.0, 0.0, 3.0])


def test_irnn_keeps_state_and_gradient_without_input():
    cell = rnn_jax.make_cell("irnn", 2, 3, rngs=nnx.Rngs(0), **FLOAT64)
    h, a = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, -2.0, 1.0])
    xs = jnp.zeros((50, 2))
    final, _ = rnn_jax.unroll(cell, xs, h)
    np.testing.assert_array_equal(final, h)
    run = reference.quick_jit(lambda xs: rnn_jax.flow.adjoints(cell, xs, jnp.zeros((50, 3)), h, carry_cotangent=a))
    result = run(xs)
    np.testing.assert_allclose(result.log10_scale, np.full(50, np.log10(np.linalg.norm(a))), rtol=1e-6)
    np.testing.assert_allclose(result.direction, np.tile(a / np.linalg.norm(a), (50, 1)), rtol=1e-6)


def test_irnn_is_elman_with_those_two_arguments_and_they_can_be_given():
    as_elman = rnn_jax.make_cell(
        "elman", 2, 3, rngs=nnx.Rngs(0), activation="relu", recurrent_kernel_init="identity", **FLOAT64
    )
    irnn = rnn_jax.make_cell("irnn", 2, 3, rngs=nnx.Rngs(0), **FLOAT64)
    x, h = reference.normal(0, 2), reference.normal(1, 3)
    np.testing.assert_array_equal(irnn(h, x)[1], as_elman(h, x)[1])
    other = rnn_jax.make_cell("irnn(activation='identity')", 2, 3, rngs=nnx.Rngs(0), **FLOAT64)
    np.testing.assert_array_equal(other(-jnp.ones(3), jnp.zeros(2))[1], -np.ones(3))
