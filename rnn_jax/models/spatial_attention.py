"""The decoder's cell of "Show, attend and tell": before each step it looks at some places of an image.

References:
  Xu, Ba, Kiros, Cho, Courville, Salakhutdinov, Zemel, Bengio 2015, "Show, attend and tell: neural image caption
  generation with visual attention", arXiv 1502.03044.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from rnn_jax.cell import Cell, PointwiseCell, check_input, check_sizes, gate_values, step
from rnn_jax.layers import as_inputs
from rnn_jax.models.attention import Attention, Memory, make_inner_cell

Array = jax.Array
Carry = Any


class Annotations(NamedTuple):
    """What there is to look at: the context of a `SpatialAttentionCell`.

    Attributes:
      memory: the annotation vectors a_i, `[*batch, L, D]`, and what they are compared by.
      sampled: of which images one place is drawn at each step that has a key, and of which the expectation is read
        (soft attention), bool `[*batch]`.
    """

    memory: Memory
    sampled: Array


class Glimpse(NamedTuple):
    """The output of a `SpatialAttentionCell`.

    Attributes:
      h: the output of the cell within, `[*batch, H]`.
      z: the gated context vector, `[*batch, D]`.
      weights: alpha, `[*batch, L]`.
      log_p: log alpha at the place that was drawn, `[*batch]`; 0 where none was.
    """

    h: Array
    z: Array
    weights: Array
    log_p: Array


class SpatialAttentionCell(Cell):
    r"""Any cell that reads, beside its input, what it attends to in an image (Xu et al. 2015, sections 3.1.2 and 4).

    .. math::
        e_{ti} &= f_{att}(a_i, h_{t-1}) = v^\top \tanh(W h_{t-1} + U a_i + b), \qquad
        \alpha_{ti} = \frac{\exp(e_{ti})}{\sum_k \exp(e_{tk})} \\
        \hat z_t &= \sum_i \alpha_{ti} a_i && \text{soft} \\
        \hat z_t &= a_{s_t}, \quad s_t \sim \mathrm{Categorical}(\alpha_t) && \text{hard, with a key} \\
        \beta_t &= \sigma(f_\beta(h_{t-1})), \qquad z_t = \beta_t \hat z_t \\
        h_t &= \mathrm{cell}(h_{t-1}, [E y_{t-1}, z_t])

    The paper's cell is the LSTM. Of another, h_{t-1} is what its recurrent kernel multiplies, or the part `h` of its
    carry, or else all parts of the carry, joined. The paper gates soft attention alone by beta; here both are.

    Carry: that of the cell within. Gates: those of the cell within, and `beta`. Output: a `Glimpse`.

    Args:
      in_features: E of the input.
      hidden_features: H of the cell within.
      cell: a name, as `rnn_jax.make_cell` takes.
      value_features: D; H by default.
      dtype, param_dtype: as in `Cell`.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell.

    Raises:
      ValueError: if the cell reads several feature axes or asks for a context itself; or as `rnn_jax.make_cell`.
    """

    check_exemptions = {"usage": "the map of the places, U, is applied once for all steps, by `annotations`"}

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: str = "lstm",
        value_features: int | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        value_features = hidden_features if value_features is None else value_features
        check_sizes(value_features=value_features)
        self.value_features = value_features
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.cell = make_inner_cell(cell, in_features + value_features, hidden_features, rngs=rngs, **dtypes, **kwargs)
        query_features = jax.eval_shape(lambda: self.query(self.initialize_carry((in_features,)))).shape[-1]
        self.attention = Attention("additive", query_features, value_features, rngs=rngs, **dtypes)
        self.beta = nnx.Linear(query_features, 1, rngs=rngs, **dtypes)

    @property
    def gate_ranges(self) -> Mapping[str, tuple[float, float]]:  # type: ignore[override]  # with those of the cell within
        return {**getattr(self.cell, "gate_ranges", {}), "beta": (0.0, 1.0)}

    def carry_spec(self) -> Carry:
        return jax.eval_shape(lambda: self.initialize_carry((self.in_features,)))

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Any = None,
    ) -> Carry:
        inner_shape = (*input_shape[:-1], self.in_features + self.value_features)
        arguments = () if carry_init is None else (carry_init,)
        return self.cell.initialize_carry(inner_shape, nnx.Rngs(0) if rngs is None else rngs, *arguments)

    def context_spec(self) -> Annotations:
        context = self.annotations(jnp.zeros((6, self.value_features), self.param_dtype))
        return jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype), context)

    def annotations(self, values: Array, sampled: Array | None = None) -> Annotations:
        """Returns the context for annotation vectors `[*batch, L, D]`.

        Args:
          values: the vectors.
          sampled: as in `Annotations`; by default the attention is soft.
        """
        if sampled is None:
            sampled = jnp.zeros(values.shape[:-2], bool)
        return Annotations(self.attention.memory(values), sampled)

    def query(self, carry: Carry) -> Array:
        """Returns h of a carry, `[*batch, Q]`: what places are compared with."""
        if isinstance(self.cell, PointwiseCell) and self.cell.recurrent_gates:
            return self.cell.hidden(carry)
        if hasattr(carry, "h"):
            return carry.h
        axes = [len(part.shape) for part in jax.tree.leaves(jax.eval_shape(lambda: self.initialize_carry((1,))))]
        parts = [
            part.reshape(*part.shape[: part.ndim - rank], math.prod(part.shape[part.ndim - rank :]))
            for part, rank in zip(jax.tree.leaves(carry), axes, strict=True)
            if jnp.issubdtype(part.dtype, jnp.floating)
        ]
        return jnp.concatenate(parts, axis=-1)

    def gates(  # type: ignore[override]  # a cell asks for a context by naming it
        self, carry: Carry, x: Array, *, context: Annotations, key: Array | None = None
    ) -> dict[str, Array]:
        look_key, cell_key = _two(key)
        z, beta, _, _ = self._look(carry, context, look_key)
        inner = gate_values(self.cell, carry, self._fed(x, z), key=cell_key) if isinstance(self.cell, Cell) else {}
        return {**inner, "beta": beta}

    def __call__(  # type: ignore[override]
        self, carry: Carry, x: Array, *, context: Annotations, key: Array | None = None
    ) -> tuple[Carry, Glimpse]:
        """Runs one step.

        Args:
          carry: as `initialize_carry` makes it.
          x: `[*batch, E]`.
          context: as `annotations` makes it.
          key: of `jax.random`. With None nothing is drawn, and hard attention reads the expectation, too.

        Raises:
          ValueError: if x has not E features.
        """
        check_input(self, x)
        look_key, cell_key = _two(key)
        z, _, weights, log_p = self._look(carry, context, look_key)
        carry, h = step(self.cell, carry, self._fed(x, z), key=cell_key)
        h = as_inputs(h, 1, x.ndim - 1)
        return carry, Glimpse(self.as_output(h, x), self.as_output(z, x), weights, log_p)

    def _look(self, carry: Carry, context: Annotations, key: Array | None) -> tuple[Array, Array, Array, Array]:
        """Returns z, beta, the weights, and the log-probability of what was drawn."""
        query = self.query(carry)
        weights = self.attention.weights(query, context.memory)
        read, log_p = weights, jnp.zeros(weights.shape[:-1], weights.dtype)
        if key is not None:
            place = jax.random.categorical(key, jnp.log(jax.lax.stop_gradient(weights)), axis=-1)
            one_place = jax.nn.one_hot(place, weights.shape[-1], dtype=weights.dtype)
            read = jnp.where(context.sampled[..., None], one_place, weights)
            log_p = jnp.where(context.sampled, jnp.log(jnp.sum(one_place * weights, axis=-1)), log_p)
        beta = jax.nn.sigmoid(self.beta(query).astype(self.param_dtype))
        return beta * self.attention.read(read, context.memory).astype(self.param_dtype), beta, weights, log_p

    def _fed(self, x: Array, z: Array) -> Array:
        """Returns E y_{t-1} and z_t side by side."""
        return jnp.concatenate([x, z.astype(x.dtype)], axis=-1)


def _two(key: Array | None) -> tuple[Array | None, Array | None]:
    """Returns the key of the place and that of the cell within."""
    return (None, None) if key is None else tuple(jax.random.split(key))
