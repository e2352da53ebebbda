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
    network = reference.drawn(lambda: GridNetwork(2, 3, 4, axes=axes, rngs=nnx.Rngs(0), param_dtype=jnp.float64))
    xs = reference.normal(1, 3, *(3, 2)[:axes], 2)

    def scores_and_gradient(xs):
        scores = network(xs)
        return jnp.sum(jnp.sin(scores)), scores

    gradient, scores = reference.quick_jit(jax.grad(scores_and_gradient, has_aux=True))(xs)
    assert scores.shape == (3, 4)
    assert np.all(np.asarray(gradient) != 0)


def test_a_patch_is_a_square_of_the_image():
    image = np.arange(4 * 6, dtype=np.float32).reshape(4, 6, 1)
    patches = reference.quick_jit(lambda image: cut_patches(image, 2))(image)
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
    inputs, labels = (2.0 * strings - 1.0).astype(np.float32), (strings.sum(axis=1) % 2).astype(np.int32)
    network = reference.drawn(lambda: GridNetwork(4, 16, 2, axes=0, depth=2, rngs=nnx.Rngs(0)), scale=0.3)
    optimizer = optax.adam(2e-2)

    def loss(network):
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(network(inputs), labels))

    def update(state, _):
        network, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(network), opt_state)
        return (optax.apply_updates(network, updates), opt_state), None

    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):  # as users have it

        @reference.quick_jit
        def train_and_answer(network):
            network, _ = jax.lax.scan(update, (network, optimizer.init(network)), length=200)[0]
            return network(inputs)

        np.testing.assert_array_equal(np.argmax(train_and_answer(network), axis=1), labels)
