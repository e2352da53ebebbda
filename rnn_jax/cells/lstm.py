"""Long short-term memory.

References:
  Hochreiter, Schmidhuber 1997, "Long short-term memory", Neural Computation 9(8).
  Gers, Schmidhuber, Cummins 2000, "Learning to forget", Neural Computation 12(10).
  Jozefowicz, Zaremba, Sutskever 2015, "An empirical exploration of recurrent network architectures", ICML.
  Tallec, Ollivier 2018, "Can recurrent neural networks warp time?", arXiv 1804.11188.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer

from rnn_jax.cell import Array, PointwiseCell, check_one_given
from rnn_jax.initializers import chrono_bias
from rnn_jax.registry import register


class LSTMCarry(NamedTuple):
    """The state of an LSTM: the cell state c and the hidden state h, `[*batch, H]` each; Flax's order."""

    c: Array
    h: Array


@register(
    "lstm",
    paper="Hochreiter, Schmidhuber 1997, Long short-term memory; Gers, Schmidhuber, Cummins 2000, Learning to forget",
)
class LSTMCell(PointwiseCell):
    r"""LSTM with a forget gate (Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000), without peepholes.

    .. math::
        i_t &= \sigma(x_t W_i + h_{t-1} R_i + b_i) \\
        f_t &= \sigma(x_t W_f + h_{t-1} R_f + b_f) \\
        g_t &= \tanh(x_t W_g + h_{t-1} R_g + b_g) \\
        o_t &= \sigma(x_t W_o + h_{t-1} R_o + b_o) \\
        c_t &= f_t \circ c_{t-1} + i_t \circ g_t \\
        h_t &= o_t \circ \tanh(c_t), \qquad y_t = h_t

    Carry: `LSTMCarry(c, h)`. Gates: `input` (i), `forget` (f), `candidate` (g), `output` (o): the order of the columns,
    which is PyTorch's. One bias; PyTorch has the sum of two.

    Args:
      forget_bias: b_f before training. By default 1 (Jozefowicz et al. 2015), where PyTorch and Flax have 0, or what
        `bias_init` draws if that is given.
      chrono: in the place of `forget_bias`: b_f = log(u), u uniform on [1, chrono - 1], and b_i = -b_f, for
        dependencies of up to `chrono` steps (Tallec, Ollivier 2018).
      bias_init: draws all biases that `forget_bias` or `chrono` does not set; zeros by default.
      **kwargs: as `PointwiseCell`.

    Raises:
      ValueError: if `forget_bias` and `chrono` are both given, or one of them with `use_bias=False`.
    """

    input_gates = recurrent_gates = ("input", "forget", "candidate", "output")
    gate_ranges = {"input": (0.0, 1.0), "forget": (0.0, 1.0), "candidate": (-1.0, 1.0), "output": (0.0, 1.0)}
    carry_type = LSTMCarry

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        forget_bias: float | None = None,
        chrono: float | None = None,
        bias_init: str | Initializer | None = None,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        super().__init__(in_features, hidden_features, bias_init=bias_init or "zeros", rngs=rngs, **kwargs)
        check_one_given("bias of the forget gate", forget_bias=forget_bias, chrono=chrono)
        if chrono is not None:
            b_f = chrono_bias(rngs.params(), chrono, hidden_features, self.param_dtype)
            self.set_gate_bias("forget", b_f)
            self.set_gate_bias("input", -b_f)
        elif forget_bias is not None:
            self.set_gate_bias("forget", forget_bias)
        elif self.bias is not None and bias_init is None:
            self.set_gate_bias("forget", 1.0)

    def activate(self, z: Mapping[str, Array], carry: LSTMCarry) -> dict[str, Array]:
        return {
            "input": jax.nn.sigmoid(z["input"]),
            "forget": jax.nn.sigmoid(z["forget"]),
            "candidate": jnp.tanh(z["candidate"]),
            "output": jax.nn.sigmoid(z["output"]),
        }

    def pointwise(self, z: Mapping[str, Array], carry: LSTMCarry) -> tuple[LSTMCarry, Array]:
        gates = self.activate(z, carry)
        c = gates["forget"] * carry.c + gates["input"] * gates["candidate"]
        h = gates["output"] * jnp.tanh(c)
        return LSTMCarry(c, h), h
