"""A cell of two equations on the fast path, held to the contract and looked into.

python -m examples.user_defined_cell
"""

import jax
import jax.numpy as jnp
from flax import nnx

import rnn_jax
from rnn_jax import flow


class MinimalGatedCell(rnn_jax.PointwiseCell):
    """f = sigmoid(x W_f + h R_f + b_f),  n = tanh(x W_n + f o (h R_n) + b_n),  h' = (1 - f) h + f n.

    The minimal gated unit (Zhou et al. 2016, arXiv 1603.09420), its forget gate behind the recurrent product.
    """

    input_gates = ("forget", "candidate_x")  # blocks of columns of W
    recurrent_gates = ("forget", "candidate_h")  # blocks of columns of R; blocks of one name are added
    gate_ranges = {"forget": (0.0, 1.0), "candidate": (-1.0, 1.0)}

    def activate(self, z, carry):
        forget = jax.nn.sigmoid(z["forget"])
        return {"forget": forget, "candidate": jnp.tanh(z["candidate_x"] + forget * z["candidate_h"])}

    def pointwise(self, z, carry):
        gates = self.activate(z, carry)
        h = (1 - gates["forget"]) * carry + gates["forget"] * gates["candidate"]
        return h, h


print(flow.check_cell(MinimalGatedCell, only=["contract", "carry", "unroll", "gates"]))

layer = rnn_jax.RNN(MinimalGatedCell(3, 32, rngs=nnx.Rngs(0)))
xs = jax.random.normal(jax.random.key(0), (16, 50, 3))
(call,) = flow.layer_calls(lambda layer: layer(xs), layer)["rnn"]
for gate, share in flow.gate_saturation(call).items():
    print(f"{gate}: {float(share):.1%} of its values are within 0.05 of an end of their range")
