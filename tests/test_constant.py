"""A `Constant` takes part in no training, whatever the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rnn_jax
from rnn_jax.constant import Constant, keep_constants, parameter_count
from rnn_jax.training.optimizers import OPTIMIZERS, make_ensemble_optimizer, make_optimizer


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


class EchoStateCell(rnn_jax.Cell):
    """h' = tanh(x W + h R) with a fixed R."""

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=None, param_dtype=param_dtype)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (in_features, hidden_features), param_dtype))
        matrix = jax.random.orthogonal(rngs.params(), hidden_features).astype(param_dtype)
        self.reservoir = Constant(param_dtype(0.9) * matrix)

    def gates(self, carry, x):
        return {"candidate": jnp.tanh(x @ self.kernel[...] + carry @ self.reservoir[...])}

    def __call__(self, carry, x):
        h = self.gates(carry, x)["candidate"]
        return h, h


@jax.jit
def gradient(model, xs):
    return jax.grad(lambda model: jnp.mean(model(xs)[:, -1] ** 2))(model)


OURS = {name: make_optimizer(name, 1e-2, weight_decay=0.5, clip=1.0, steps=9) for name in OPTIMIZERS} | {
    "adamw, accumulated": make_optimizer("adamw", 1e-2, weight_decay=0.5, steps=9, accumulate=2),
    "ensemble": make_ensemble_optimizer(1e-2, clip=1.0),
    "optax": keep_constants(optax.adamw(1e-2, weight_decay=0.5)),
}


@pytest.mark.parametrize("name", OURS)
def test_no_optimizer_moves_a_constant(name):
    model = rnn_jax.RNN(EchoStateCell(3, 5, rngs=nnx.Rngs(0)))
    xs = jax.random.normal(jax.random.key(0), (4, 6, 3), jnp.float32)
    trained, state = model, OURS[name].init(model)

    @jax.jit
    def update(grads, state, trained):
        updates, state = OURS[name].update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    for _ in range(4):
        grads = gradient(trained, xs)
        np.testing.assert_array_equal(grads.cell.reservoir[...], 0)
        trained, state = update(grads, state, trained)
    np.testing.assert_array_equal(trained.cell.reservoir[...], model.cell.reservoir[...])
    assert np.all(trained.cell.kernel[...] != model.cell.kernel[...])


def test_a_constant_is_not_counted_and_is_batched_like_a_parameter():
    models = jax.vmap(lambda key: EchoStateCell(3, 5, rngs=nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 2))
    assert models.reservoir.shape == (2, 5, 5)
    assert not np.array_equal(models.reservoir[0], models.reservoir[1])
    assert parameter_count(models) == 2 * 3 * 5
