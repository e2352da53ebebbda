"""Claims about the Grid LSTM that answers once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax.models import GridNetwork
from rnn_jax.models.grid_network import cut_patches
from tests import reference


@pytest.mark.parametrize("axes", [0, 1, 2])
def test_the_answer_is_read_where_all_has_been_seen(axes):
    """Every place and feature of the input changes it."""
    network = reference.randomized(GridNetwork(2, 3, 4, axes=axes, rngs=nnx.Rngs(0), param_dtype=jnp.float64), seed=0)
    xs = reference.normal(1, 3, *(3, 2)[:axes], 2)

    def scores_and_gradient(xs):
        scores = network(xs)
        return jnp.sum(jnp.sin(scores)), scores

    gradient, scores = reference.quick_jit(jax.grad(scores_and_gradient, has_aux=True))(xs)
    assert scores.shape == (3, 4)
    assert np.all(np.asarray(gradient) != 0)


def test_a_patch_is_a_square_of_the_image():
    image = jnp.arange(4 * 6, dtype=jnp.float32).reshape(4, 6, 1)
    patches = cut_patches(image, 2)
    assert patches.shape == (2, 3, 4)
    np.testing.assert_array_equal(patches[1, 2], [16, 17, 22, 23])


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"patch=3 does not cover images of 4 x 6; allowed: a divisor of both\."):
        cut_patches(jnp.zeros((4, 6, 1)), 3)
    with pytest.raises(ValueError, match=r"patch=2 with axes=1 cuts no image; allowed: axes=2, or patch=1\."):
        GridNetwork(1, 2, 2, axes=1, patch=2, rngs=nnx.Rngs(0))


def test_it_learns_a_parity_that_no_linear_map_knows():
    """Parity of 4 bits at once: a linear map has at most 11 of the 16 right."""
    strings = np.indices((2,) * 4).reshape(4, -1).T
    bits, labels = jnp.asarray(strings, jnp.float32), jnp.asarray(strings.sum(axis=1) % 2, jnp.int32)
    network = GridNetwork(4, 16, 2, axes=0, depth=2, rngs=nnx.Rngs(0))
    optimizer = optax.adam(2e-2)

    def loss(network):
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(network(2.0 * bits - 1.0), labels))

    def update(state, _):
        network, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(network), opt_state)
        return (optax.apply_updates(network, updates), opt_state), None

    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):  # as users have it
        train = reference.quick_jit(lambda state: jax.lax.scan(update, state, length=200)[0])
        network, _ = train((network, optimizer.init(network)))
        np.testing.assert_array_equal(np.argmax(network(2.0 * bits - 1.0), axis=1), labels)
