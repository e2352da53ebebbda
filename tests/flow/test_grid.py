"""Claims about the gradient profile along every dimension of a grid."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import flow
from rnn_jax.cells.grid_lstm import GridLSTM
from rnn_jax.models import GridNetwork, SequenceClassifier
from tests import grid_reference, reference

F, H = 2, 3
F64 = {"param_dtype": jnp.float64}


def loss_of(model, xs):
    return jnp.sum(jnp.cos(model(xs)))


@pytest.mark.parametrize(("sizes", "depth", "names"), [((), 2, ("depth",)), ((2, 2), 1, ("rows", "columns", "depth"))])
def test_the_profile_is_that_of_a_zero_added_at_each_place(sizes, depth, names):
    """One zero a place, level and dimension in a loop in Python, and `jax.grad`."""
    build = {"axes": len(sizes), "depth": depth, "shared": False}
    grid = reference.drawn(lambda: GridLSTM(F, H, **build, rngs=nnx.Rngs(0), **F64), seed=0, scale=0.7)
    xs = np.asarray(reference.normal(1, 2, *sizes, F))
    profile = reference.quick_jit(partial(flow.grid_profile, loss_of))(grid, xs)
    zeros = [[(np.zeros((*sizes, H)),) * 2 for _ in names] for _ in range(grid.depth)]

    def by_loop(eps, x):
        return sum(jnp.sum(jnp.cos(h)) for h in grid_reference.grid(grid, x, eps, jnp).values())

    one = reference.quick_jit(jax.value_and_grad(by_loop))
    losses, adjoints = zip(*jax.tree.map(np.asarray, [one(zeros, x) for x in xs]))
    np.testing.assert_allclose(profile.loss, sum(losses), rtol=1e-12)
    assert set(profile.log10_norm) == set(names)
    for k, name in enumerate(names):
        squares = np.array(
            [[sum(np.sum(np.square(part), axis=-1) for part in level[k]) for level in one] for one in adjoints]
        )
        reference.assert_log10_of(profile.log10_norm[name], np.sqrt(np.mean(squares, axis=0)), 1e-5)
        others = tuple(axis for axis in range(len(sizes) + 1) if axis != (0 if name == "depth" else 1 + k))
        expected = np.sqrt(np.sum(np.mean(squares, axis=0), axis=others))
        reference.assert_log10_of(profile.along(name), expected, 1e-5)


def test_along_time_it_is_the_profile_of_the_cells_carry():
    model = SequenceClassifier("grid_lstm(depth=2)", F, H, 2, rngs=nnx.Rngs(0), **F64)
    xs = reference.normal(1, 2, 3, F)
    grid, time = (
        reference.quick_jit(partial(measure, loss_of))(model, xs)
        for measure in (flow.grid_profile, flow.gradient_profile)
    )
    np.testing.assert_allclose(grid.loss, time.loss, rtol=1e-12)
    reference.assert_log10_of(grid.along("time"), 10.0 ** np.asarray(time.log10_norm["rnn"], np.float64), 1e-5)
    for level in range(2):
        squares = sum(10.0 ** (2 * np.asarray(time.log10_norm[f"rnn/{level}/{part}"], np.float64)) for part in "mh")
        reference.assert_log10_of(grid.log10_norm["time"][level], np.sqrt(squares), 1e-5)


def test_a_lone_layer_is_a_stack_of_one():
    layer = rnn_jax.RNN(reference.make_cell("elman", F, H))
    xs = reference.normal(1, 3, 4, F)
    profile, ys = reference.quick_jit(lambda layer, xs: (flow.grid_profile(loss_of, layer, xs), layer(xs)))(layer, xs)
    expected = np.sqrt(np.mean(np.sum(np.sin(np.asarray(ys)) ** 2, axis=-1), axis=0))
    reference.assert_log10_of(profile.log10_norm["depth"], expected[None], 1e-5)


def test_between_the_layers_of_a_stack_it_is_the_gradient_of_their_outputs():
    model = SequenceClassifier("elman", F, H, 2, layers=2, per_step=True, rngs=nnx.Rngs(0), **F64)
    xs = reference.normal(1, 3, 4, F)
    profile = reference.quick_jit(partial(flow.grid_profile, loss_of))(model, xs)

    @reference.quick_jit
    def by_hand(model):
        below, above = model.rnn.layers
        middle = below(xs)
        rest = jax.grad(lambda middle: jnp.sum(jnp.cos(model.head(above(middle)))))
        top = jax.grad(lambda ys: jnp.sum(jnp.cos(model.head(ys))))
        return rest(middle), top(above(middle))

    expected = by_hand(model)
    norms = [np.sqrt(np.mean(np.sum(np.square(np.asarray(adjoint)), axis=-1), axis=0)) for adjoint in expected]
    reference.assert_log10_of(profile.log10_norm["depth"], np.stack(norms), 1e-5)


def test_a_small_gradient_keeps_its_square():
    """In float32 the square of 1e-30 is 0."""
    network = GridNetwork(F, H, 2, axes=0, rngs=nnx.Rngs(0))
    xs = jnp.ones((2, F), jnp.float32)

    @reference.quick_jit
    def measure(network, scale):
        return flow.grid_profile(lambda model: scale * jnp.sum(model(xs)), network).log10_norm["depth"]

    plain, small = (measure(network, jnp.float32(scale)) for scale in (1.0, 1e-30))
    np.testing.assert_allclose(small, np.asarray(plain) - 30, atol=1e-4)


def test_what_has_no_depth_to_profile_is_refused():
    xs = jnp.zeros((2, 4, F))
    grid = rnn_jax.make_cell("grid_lstm", F, H, rngs=nnx.Rngs(0), **F64)
    backward = rnn_jax.RNN(grid, reverse=True)
    nothing = nnx.Linear(F, H, rngs=nnx.Rngs(0), **F64)
    for model, sentence in (
        (nothing, "model has 0 networks with a depth to profile"),
        ([backward, rnn_jax.RNN(grid)], "model has 2 networks"),
        (backward, "runs in reverse, is time-major"),
    ):
        with pytest.raises(ValueError, match=sentence):
            flow.grid_profile(lambda model: jnp.sum(model(xs)), model)
    with pytest.raises(ValueError, match="ran the network to profile 2 times; allowed: once"):
        flow.grid_profile(lambda model: jnp.sum(model(xs)) + jnp.sum(model(xs)), rnn_jax.RNN(grid))
