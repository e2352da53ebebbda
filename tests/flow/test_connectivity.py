"""Connectivity against one gradient a step, of a model that knows nothing of windows."""

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import RNN, flow
from tests import reference

B, T, F, H = 2, 7, 3, 4
LENGTHS = np.array([7, 5])


def test_connectivity_is_one_gradient_of_each_output_with_regard_to_the_inputs():
    layer = RNN(reference.make_cell("elman", F, H))
    xs, weights, window = reference.normal(0, B, T, F), reference.normal(1, B, T, H), 4

    @reference.quick_jit
    def run(layer, xs):
        call = flow.layer_calls(lambda layer: layer(xs, seq_lengths=jnp.asarray(LENGTHS)), layer)["rnn"][0]
        return flow.connectivity(call, weights, window), flow.connectivity(call, weights, 100)

    seen, whole = map(np.asarray, run(layer, xs))
    assert seen.shape == (B, T, window)
    np.testing.assert_allclose(whole[..., :window], seen, rtol=1e-6)

    @reference.quick_jit
    def gradients(xs):  # [p, B, T, F]
        return jax.jacrev(lambda xs: jnp.sum(layer(xs) * weights, axis=(0, 2)))(xs)

    expected = np.asarray(gradients(xs))
    for b in range(B):
        for p in range(T):
            for lag in range(T):
                if p < LENGTHS[b] and lag <= p:
                    norm = np.linalg.norm(expected[p, b, p - lag])
                    np.testing.assert_allclose(whole[b, p, lag], np.log10(norm), rtol=1e-5, atol=1e-5)
                else:
                    assert whole[b, p, lag] == -np.inf
