"""A carry that is given is matched to the cell's own by name, shape and type."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax import RNN, unroll
from tests import reference

F, H = 2, 3
run = reference.quick_jit(unroll)


class HiddenFirst(NamedTuple):
    h: jax.Array
    c: jax.Array


class Unrelated(NamedTuple):
    state: jax.Array
    memory: jax.Array


@pytest.mark.parametrize("name", ["lstm", "flax.nnx:LSTMCell"])
def test_parts_with_names_are_matched_by_name(name):
    cell, xs = reference.make_cell(name, F, H), reference.normal(2, 4, 5, F)
    c, h = jax.tree.leaves(reference.random_carry(cell, (4,), seed=3))
    expected = run(cell, xs, (c, h))
    assert jax.tree.structure(expected[0]) == jax.tree.structure(cell.initialize_carry((4, F), nnx.Rngs(0)))
    for given in (HiddenFirst(h=h, c=c), {"h": h, "c": c}):
        reference.assert_close(run(cell, xs, given), expected, 0.0)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="carry has parts state, memory; allowed: c, h"):
        unroll(reference.make_cell("lstm", F, H), jnp.zeros((4, 5, F)), Unrelated(jnp.zeros((4, H)), jnp.zeros((4, H))))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("lstm", jnp.bfloat16), ("lstm", jnp.int32), ("lstm", jnp.float64), ("flax.nnx:GRUCell", jnp.int32)],
)
def test_a_carry_is_cast_to_the_type_of_the_cells_own(name, dtype):
    cell, xs = reference.make_cell(name, F, H, dtype=jnp.float32), reference.normal(2, 4, 5, F, dtype=jnp.float32)
    carry = jax.tree.map(lambda part: part.astype(dtype), reference.random_carry(cell, (4,), seed=3))
    final, _ = run(cell, xs, carry)
    assert {part.dtype for part in jax.tree.leaves(final)} == {jnp.dtype(jnp.float32)}
    cast = jax.tree.map(lambda part: part.astype(jnp.float32), carry)
    reference.assert_close(final, run(cell, xs, cast)[0], 0.0)


def test_a_type_that_cannot_be_cast_is_refused():
    with pytest.raises(ValueError, match="the part '' of the carry has type complex64; allowed: float32"):
        unroll(
            reference.make_cell("gru", F, H, dtype=jnp.float32),
            jnp.zeros((4, 5, F), jnp.float32),
            jnp.zeros((4, H), jnp.complex64),
        )


class WithoutCarry(nnx.RNNCellBase):
    """h' = tanh([x, h] W), for whatever carry it is given."""

    def __init__(self):
        self.kernel = nnx.Param(reference.normal(0, F + H, H))

    def __call__(self, carry, x):
        h = jnp.tanh(jnp.concatenate([x, carry], axis=-1) @ self.kernel[...])
        return h, h

    @property
    def num_feature_axes(self):
        return 1


class AnyWidth(nnx.RNNCellBase):
    """A leaky sum of any width; its own carry has one feature."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], 1))

    def __call__(self, carry, x):
        carry = 0.5 * carry + jnp.sum(x, axis=-1, keepdims=True)
        return carry, carry

    @property
    def num_feature_axes(self):
        return 1


@pytest.mark.parametrize(("cell", "width"), [(WithoutCarry(), H), (AnyWidth(), 4)])
def test_a_cell_without_a_carry_of_that_shape_runs_on_the_one_it_is_given(cell, width):
    xs, carry = reference.normal(2, 4, 5, F), reference.normal(3, 4, width)
    ours = RNN(cell, return_carry=True)(xs, initial_carry=carry)
    reference.assert_close(ours, nnx.RNN(cell, return_carry=True)(xs, initial_carry=carry), 1e-14)


class Counter(nnx.RNNCellBase):
    """Carries h and the number of steps, which all sequences share."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return {"h": jnp.zeros(input_shape), "steps": jnp.zeros((), jnp.int32)}

    def __call__(self, carry, x):
        steps = carry["steps"] + 1
        h = carry["h"] + x * steps.astype(x.dtype)
        return {"h": h, "steps": steps}, h

    @property
    def num_feature_axes(self):
        return 1


def test_a_part_without_batch_axes_goes_on_through_padding_and_resets():
    xs, lengths = reference.normal(2, 3, 5, F), np.array([5, 2, 0])
    resets = np.zeros((3, 5), bool)
    resets[0, 3] = True
    final, ys = unroll(Counter(), xs, lengths=lengths, resets=resets)
    assert final["steps"] == 5
    weights = np.arange(1, 6).reshape(1, 5, 1)
    sums = np.cumsum(np.asarray(xs) * weights, axis=1)
    np.testing.assert_allclose(ys[1, :2], sums[1, :2], rtol=1e-12)
    np.testing.assert_array_equal(ys[1, 2:], 0)
    np.testing.assert_allclose(ys[0, 3:], sums[0, 3:] - sums[0, 2], rtol=1e-12)
    np.testing.assert_allclose(final["h"][1:], [sums[1, 1], np.zeros(F)], rtol=1e-12)
