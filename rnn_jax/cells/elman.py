"""The simple recurrent network of Elman, and the same with rectifiers and an identity start.

References:
  Elman 1990, "Finding structure in time", Cognitive Science 14.
  Le, Jaitly, Hinton 2015, "A simple way to initialize recurrent networks of rectified linear units", arXiv 1504.00941.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rnn_jax.activations import as_activation
from rnn_jax.cell import Array, PointwiseCell
from rnn_jax.registry import register


@register("elman", paper="Elman 1990, Finding structure in time")
class ElmanCell(PointwiseCell):
    r"""Elman RNN (Elman 1990).

    .. math::
        h_t = \mathrm{act}(x_t W + h_{t-1} R + b), \qquad y_t = h_t

    Carry: h, `[*batch, H]`. Gates: `candidate`, which is h_t itself.

    Args:
      activation: act, a function or the name of one (`tanh`, `relu`, `identity`, ...).
      **kwargs: as `PointwiseCell`.
    """

    input_gates = recurrent_gates = ("candidate",)

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation: str | Callable[[Array], Array] = "tanh",
        **kwargs: Any,
    ):
        super().__init__(in_features, hidden_features, **kwargs)
        self.activation = as_activation(activation)

    def activate(self, z: Mapping[str, Array], carry: Array) -> dict[str, Array]:
        return {"candidate": self.activation(z["candidate"])}

    def pointwise(self, z: Mapping[str, Array], carry: Array) -> tuple[Array, Array]:
        h = self.activate(z, carry)["candidate"]
        return h, h


@register("irnn", paper="Le, Jaitly, Hinton 2015", arxiv="1504.00941")
class IRNNCell(ElmanCell):
    """IRNN (Le, Jaitly, Hinton 2015): an Elman cell with `relu` whose recurrent kernel starts as the identity.

    With zero input and h >= 0 the state stays what it is, and so does its gradient, until training moves R.

    Args:
      **kwargs: as `ElmanCell`; here `activation` is `relu` and `recurrent_kernel_init` is `identity` by default.
    """

    def __init__(self, in_features: int, hidden_features: int, **kwargs: Any):
        defaults = {"activation": "relu", "recurrent_kernel_init": "identity"}
        super().__init__(in_features, hidden_features, **{**defaults, **kwargs})
