"""A batch spread over two devices against the same batch on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import rnn_jax
from rnn_jax import Checkpointed, Truncated, flow
from rnn_jax.layers import make_rnn
from rnn_jax.unroll import batch_mesh, unroll
from tests import reference

F, H, TIME = 3, 4, 7

pytestmark = reference.needs_two_devices


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def make(name):
    return rnn_jax.make_cell(name, F, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64)


def outputs_and_gradients(run, *operands):
    """A new program for each call: `jax.jit` of a function of its own."""

    def loss(*operands):
        outputs = run(*operands)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)), outputs

    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(operands))), has_aux=True))(*operands)


def assert_same(one, other):
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(one) == len(other)
    for a, b in zip(one, other):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def crossings(compiled):
    """Returns the names of the computations of a compiled program in which devices exchange anything."""
    text = compiled.as_text()
    found, computation = [], ""
    for line in text.splitlines():
        if line and not line.startswith((" ", "}")):
            computation = line.split()[0]
        if re.search(r"= .*(all-reduce|all-gather|all-to-all|collective-permute)(-start)?\(", line):
            found.append(computation)
    return found


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("lstm", {}),
        ("gru", {"gradient": Checkpointed(3)}),
        ("elman", {"gradient": Truncated(2)}),
    ],
)
def test_two_devices_give_what_one_gives(name, more):
    rng = np.random.default_rng(1)
    kwargs = {
        "lengths": jnp.asarray(rng.integers(0, TIME + 1, (4, 3))),
        "resets": jnp.asarray(rng.random((4, 3, TIME)) < 0.3),
        "reverse": True,
        **more,
    }
    cell, xs = make(name), draw(4, 3, TIME, F)
    carry = jax.tree.map(lambda part: draw(*part.shape, seed=2), cell.initialize_carry((4, 3, F)))

    def run(cell, xs, carry):
        return unroll(cell, xs, carry, **kwargs)

    one = outputs_and_gradients(run, cell, xs, carry)
    with jax.set_mesh(batch_mesh(2)):
        assert_same(outputs_and_gradients(run, cell, xs, carry), one)


@pytest.mark.parametrize("cell", ["gru", "nnx"])
def test_layers_of_any_cell_stay_apart_from_each_other_all_the_way(cell):
    """All that crosses are the gradients of the parameters, once, outside of every loop."""
    if cell == "nnx":
        model = rnn_jax.RNN(nnx.GRUCell(F, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64))
    else:
        kwargs = {"layers": 2, "bidirectional": True, "param_dtype": jnp.float64}
        model = make_rnn(cell, F, H, rngs=nnx.Rngs(0), **kwargs)
    xs, lengths = draw(4, TIME, F), jnp.array([7, 2, 0, 5])

    def loss_and_gradients(model, xs):
        return jax.value_and_grad(lambda m, x: jnp.sum(jnp.sin(m(x, seq_lengths=lengths))), argnums=(0, 1))(model, xs)

    alone = jax.jit(loss_and_gradients).lower(model, xs).compile()
    assert not crossings(alone)
    one = alone(model, xs)
    mesh = batch_mesh(2)
    with jax.set_mesh(mesh):
        xs = jax.device_put(xs, NamedSharding(mesh, PartitionSpec("batch")))
        spread = jax.jit(lambda model, xs: loss_and_gradients(model, xs)).lower(model, xs).compile()
        two = spread(model, xs)
        assert two[1][1].sharding.spec == PartitionSpec("batch")
        assert_same(two, one)
        places = crossings(spread)
    assert places
    assert set(places) == {"ENTRY"}


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_batch_that_cannot_be_shared_out_stays_whole(batch):
    cell, xs = make("lstm"), draw(*batch, TIME, F)
    one = outputs_and_gradients(lambda cell, xs: unroll(cell, xs), cell, xs)
    with jax.set_mesh(batch_mesh(2)):
        assert_same(outputs_and_gradients(lambda cell, xs: unroll(cell, xs), cell, xs), one)


def test_the_gradient_profile_is_the_same_under_a_mesh():
    model, xs = rnn_jax.RNN(make("lstm")), draw(4, TIME, F)

    def profile(model):
        return flow.gradient_profile(lambda model: jnp.sum(jnp.sin(model(xs))), model)

    one = jax.jit(profile)(model)
    with jax.set_mesh(batch_mesh(2)):
        assert_same(jax.jit(lambda model: profile(model))(model), one)


@pytest.mark.parametrize("devices", [0, 1000])
def test_devices_that_there_are_not_are_refused(devices):
    with pytest.raises(ValueError, match=rf"^devices={devices} is out of range; allowed: 1 to {jax.device_count()}, "):
        batch_mesh(devices)
