"""How far back does the gradient of an untrained LSTM reach, and how far that of a GRU?

python -m examples.compare_gradient_flow
"""

import jax
import jax.numpy as jnp
from flax import nnx

import rnn_jax
from rnn_jax import flow


def loss_fn(model, xs):
    """Reads the last output alone: every gradient at an earlier step came back through time."""
    return jnp.mean(model(xs)[:, -1] ** 2)


xs = jax.random.normal(jax.random.key(0), (16, 100, 3))  # [batch, time, features]
profile_fn = jax.jit(lambda model, xs: flow.gradient_profile(loss_fn, model, xs))

print(f"{'cell':24}{'log10 |dL/d carry| at step 1':>30}{'lag of 1/1000':>16}")
for name in ("elman", "gru", "gru(update_bias=1)", "lstm"):
    model = rnn_jax.RNN(rnn_jax.make_cell(name, in_features=3, hidden_features=32, rngs=nnx.Rngs(0)))
    log10_norm = profile_fn(model, xs).log10_norm["rnn"]  # [time]
    print(f"{name:24}{float(log10_norm[0]):30.1f}{int(flow.horizon(log10_norm).lag_1000):16}")
