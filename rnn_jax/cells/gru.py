"""Gated recurrent units, in the two forms that are in use: reset after and reset before the recurrent product.

References:
  Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio 2014, "Learning phrase representations using
  RNN encoder-decoder for statistical machine translation", arXiv 1406.1078.
  Tallec, Ollivier 2018, "Can recurrent neural networks warp time?", arXiv 1804.11188.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from rnn_jax.cell import Array, Cell, PointwiseCell, check_input, check_one_given
from rnn_jax.initializers import chrono_bias, draw_kernel
from rnn_jax.registry import register


def _update_gate_bias(
    update_bias: float | None, chrono: float | None, size: int, dtype: Dtype, rngs: nnx.Rngs
) -> Array | None:
    """Returns the bias of the update gate, `[H]`: constant, or drawn for time scales up to `chrono`; None if neither.

    Raises:
      ValueError: if both are given.
    """
    check_one_given("bias of the update gate", update_bias=update_bias, chrono=chrono)
    if chrono is not None:
        return chrono_bias(rngs.params(), chrono, size, dtype)
    return None if update_bias is None else jnp.full((size,), update_bias, dtype)


@register("gru", paper="Cho, van Merrienboer, Gulcehre et al. 2014, as cuDNN computes it", arxiv="1406.1078")
class GRUCell(PointwiseCell):
    r"""GRU, reset gate after the recurrent product: the form of cuDNN, PyTorch, Keras and Flax.

    .. math::
        r_t &= \sigma(x_t W_r + h_{t-1} R_r + b_r) \\
        u_t &= \sigma(x_t W_u + h_{t-1} R_u + b_u) \\
        n_t &= \tanh(x_t W_n + b_{nx} + r_t \circ (h_{t-1} R_n + b_{nh})) \\
        h_t &= u_t \circ h_{t-1} + (1 - u_t) \circ n_t, \qquad y_t = h_t

    Carry: h, `[*batch, H]`. Gates: `reset` (r), `update` (u; PyTorch's and Flax's z; it keeps the state when it is 1,
    as in Cho et al.), `candidate` (n). Columns: r, u, n. Biases: r, u, nx, nh; Flax's `GRUCell` has no b_nh.

    Args:
      update_bias: b_u before training; by default what `bias_init` draws, which is 0 unless given. 0 is the custom, and
        lets half of the state go at each step; 1 or more keeps the gradient alive for longer.
      chrono: in the place of `update_bias`: b_u = log(v), v uniform on [1, chrono - 1], for dependencies of up to
        `chrono` steps (Tallec, Ollivier 2018).
      **kwargs: as `PointwiseCell`.

    Raises:
      ValueError: if `update_bias` and `chrono` are both given, or one of them with `use_bias=False`.
    """

    input_gates = ("reset", "update", "candidate_x")
    recurrent_gates = ("reset", "update", "candidate_h")
    gate_ranges = {"reset": (0.0, 1.0), "update": (0.0, 1.0), "candidate": (-1.0, 1.0)}

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        update_bias: float | None = None,
        chrono: float | None = None,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        super().__init__(in_features, hidden_features, rngs=rngs, **kwargs)
        bias = _update_gate_bias(update_bias, chrono, hidden_features, self.param_dtype, rngs)
        if bias is not None:
            self.set_gate_bias("update", bias)

    def activate(self, z: Mapping[str, Array], carry: Array) -> dict[str, Array]:
        r = jax.nn.sigmoid(z["reset"])
        return {
            "reset": r,
            "update": jax.nn.sigmoid(z["update"]),
            "candidate": jnp.tanh(z["candidate_x"] + r * z["candidate_h"]),
        }

    def pointwise(self, z: Mapping[str, Array], carry: Array) -> tuple[Array, Array]:
        gates = self.activate(z, carry)
        h = gates["update"] * carry + (1.0 - gates["update"]) * gates["candidate"]
        return h, h


@register("gru_reset_before", paper="Cho, van Merrienboer, Gulcehre et al. 2014", arxiv="1406.1078")
class GRUResetBeforeCell(Cell):
    r"""GRU, reset gate before the recurrent product: the form of the paper (Cho et al. 2014).

    .. math::
        r_t &= \sigma(x_t W_r + h_{t-1} R_r + b_r) \\
        u_t &= \sigma(x_t W_u + h_{t-1} R_u + b_u) \\
        n_t &= \tanh(x_t W_n + (r_t \circ h_{t-1}) R_n + b_n) \\
        h_t &= u_t \circ h_{t-1} + (1 - u_t) \circ n_t, \qquad y_t = h_t

    Carry: h, `[*batch, H]`. Gates: `reset`, `update` (keeps the state when it is 1), `candidate`. Columns of kernels
    and bias: r, u, n. The second product waits for the first, so this form is no `PointwiseCell` and runs by the
    plain scan.

    Args:
      update_bias: b_u before training; 0 by default, as are the other biases.
      chrono: in the place of `update_bias`, as in `GRUCell`.
      kernel_init, recurrent_kernel_init, dtype, param_dtype, rngs: as `PointwiseCell`.

    Raises:
      ValueError: if `update_bias` and `chrono` are both given.
    """

    gate_ranges = {"reset": (0.0, 1.0), "update": (0.0, 1.0), "candidate": (-1.0, 1.0)}

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        update_bias: float | None = None,
        chrono: float | None = None,
        kernel_init: str | Initializer = "lecun_normal",
        recurrent_kernel_init: str | Initializer = "orthogonal",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        size = hidden_features
        self.kernel = draw_kernel(kernel_init, in_features, size, 3, dtype=param_dtype, rngs=rngs)
        self.recurrent_kernel = draw_kernel(recurrent_kernel_init, size, size, 3, dtype=param_dtype, rngs=rngs)
        zeros = jnp.zeros((size,), param_dtype)
        bias_u = _update_gate_bias(update_bias, chrono, size, param_dtype, rngs)
        self.bias = nnx.Param(jnp.concatenate([zeros, zeros if bias_u is None else bias_u, zeros]))

    def gates(self, carry: Array, x: Array) -> dict[str, Array]:
        check_input(self, x)
        h, size = carry, self.hidden_features
        recurrent_kernel = self.recurrent_kernel[...]
        x_r, x_u, x_n = jnp.split(self.dense(x, self.kernel[...], self.bias[...]), 3, axis=-1)
        h_r, h_u = jnp.split(self.dense(h, recurrent_kernel[:, : 2 * size]), 2, axis=-1)
        r = jax.nn.sigmoid(x_r + h_r)
        u = jax.nn.sigmoid(x_u + h_u)
        n = jnp.tanh(x_n + self.dense(r * h, recurrent_kernel[:, 2 * size :]))
        return {"reset": r, "update": u, "candidate": n}

    def __call__(self, carry: Array, x: Array) -> tuple[Array, Array]:
        gates = self.gates(carry, x)
        h = gates["update"] * carry + (1.0 - gates["update"]) * gates["candidate"]
        return h, self.as_output(h, x)
