"""Attention of a decoder over the outputs of an encoder, and the decoder's cell that does it at every step.

References:
  Bahdanau, Cho, Bengio 2014, "Neural machine translation by jointly learning to align and translate", arXiv 1409.0473.
  Luong, Pham, Manning 2015, "Effective approaches to attention-based neural machine translation", arXiv 1508.04025.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from rnn_jax.cell import Cell, asks_for, check_input, check_sizes, gate_values, step
from rnn_jax.initializers import draw_kernel
from rnn_jax.layers import as_inputs
from rnn_jax.models.pooling import at_least_float32, steps_within
from rnn_jax.registry import make_cell

Array = jax.Array
Carry = Any

SCORES = ("additive", "dot", "general")


class Memory(NamedTuple):
    """What is attended to: S positions of each sequence.

    Attributes:
      keys: what a query is compared with, `[*batch, S, A]`.
      values: the encoder's outputs, `[*batch, S, F]`.
      mask: which positions are true ones, bool `[*batch, S]`.
    """

    keys: Array
    values: Array
    mask: Array


class Attention(nnx.Module):
    r"""Weights over the positions of a memory, from how well each of them answers a query.

    .. math::
        \mathrm{score}(q, h_s) &= v^\top \tanh(W q + U h_s + b)  && \text{additive (Bahdanau et al.)} \\
        \mathrm{score}(q, h_s) &= q^\top h_s                     && \text{dot (Luong et al.)} \\
        \mathrm{score}(q, h_s) &= q^\top W h_s                   && \text{general (Luong et al.)} \\
        a_s &= \frac{\exp(\mathrm{score}(q, h_s))}{\sum_{s'} \exp(\mathrm{score}(q, h_{s'}))}, \qquad
        c = \sum_s a_s h_s

    over the true positions s. U h_s and W h_s are computed once for a sequence (`memory`), not at each step.

    Args:
      score: "additive", "dot" or "general".
      query_features: Q of the query; the additive score has as many hidden units.
      value_features: F of the encoder's outputs.
      dtype, param_dtype: as in `flax.nnx.Linear`.
      rngs: draws the parameters.

    Raises:
      ValueError: if the score is unknown, or "dot" meets values of another size than the query's.
    """

    def __init__(self, score: str, query_features: int, value_features: int, *, rngs: nnx.Rngs, **dtypes: Any):
        if score not in SCORES:
            raise ValueError(f"attention={score!r} is unknown; allowed: {', '.join(SCORES)}.")
        if score == "dot" and query_features != value_features:
            raise ValueError(
                f"attention='dot' compares {query_features} features of the decoder with {value_features} of the"
                " encoder; allowed: as many (an encoder of one direction), or attention='general' or 'additive'."
            )
        self.score = score
        self.query = self.key = self.v = nnx.data(None)
        if score == "additive":
            self.query = nnx.Linear(query_features, query_features, **dtypes, rngs=rngs)
            self.v = nnx.Linear(query_features, 1, use_bias=False, **dtypes, rngs=rngs)
        if score != "dot":
            self.key = nnx.Linear(value_features, query_features, use_bias=False, **dtypes, rngs=rngs)

    def memory(self, values: Array, lengths: Array | None = None) -> Memory:
        """Returns what queries of a whole sequence are compared with.

        Args:
          values: the encoder's outputs, `[*batch, S, F]`, finite at padded positions.
          lengths: true positions of each sequence, int `[*batch]`; None if nothing is padded.
        """
        mask = jnp.ones(values.shape[:-1], bool)
        if lengths is not None:
            mask &= steps_within(lengths, values.shape[-2])[..., 0]
        return Memory(values if self.key is None else self.key(values), values, mask)

    def weights(self, query: Array, memory: Memory) -> Array:
        """Returns a_s for queries `[*batch, Q]`, `[*batch, S]`, float32 at least.

        They sum to 1 over the true positions and are exactly 0 elsewhere; all are 0 in a sequence of length 0.
        """
        keys = memory.keys
        if self.query is not None and self.v is not None:
            scores = self.v(jnp.tanh(self.query(query)[..., None, :] + keys))[..., 0]
        else:
            scores = jnp.einsum("...q,...sq->...s", query.astype(keys.dtype), keys)
        scores = at_least_float32(scores)
        # Not -inf, whose softmax is NaN where no position is true.
        scores = jnp.where(memory.mask, scores, jnp.full_like(scores, jnp.finfo(scores.dtype).min))
        return jnp.where(memory.mask, jax.nn.softmax(scores, axis=-1), jnp.zeros_like(scores))

    def read(self, weights: Array, memory: Memory) -> Array:
        """Returns c for weights `[*batch, S]`: `[*batch, F]`, in the type of the values."""
        return jnp.einsum("...s,...sf->...f", weights.astype(memory.values.dtype), memory.values)


class AttendingCarry(NamedTuple):
    """Carry of an `AttendingCell`.

    Attributes:
      cell: the carry of the cell within.
      attended: the output before, `[*batch, H]`.
    """

    cell: Any
    attended: Array


class AttendingCell(Cell):
    r"""A decoder's cell: any cell, attention over an encoder's outputs, and input feeding (Luong et al. 2015).

    .. math::
        s_t &= \mathrm{cell}(s_{t-1}, [x_t, \tilde h_{t-1}]) \\
        c_t &= \sum_s a_{ts} h_s, \qquad a_t = \mathrm{softmax}_s\,\mathrm{score}(s_t, h_s) \\
        \tilde h_t &= \tanh([c_t, s_t]\, W_c), \qquad y_t = \tilde h_t

    where s_t in the second line is the output of the cell. Bahdanau et al. compare the state *before* the step,
    s_{t-1}, and feed c_t to it; here all scores are taken after the step, as Luong et al. do, and what was attended to
    reaches the next step by way of h~_t. Luong et al. feed h~_t to the lowest layer of a deep decoder; here it goes to
    the layer that attends.

    Carry: `cell`, that of the cell within, and `attended`, h~, `[*batch, H]`. Gates: those of the cell within. The
    context is a `Memory`, as `attention.memory` makes it.

    Args:
      in_features: F of the input.
      hidden_features: H of the cell within and of h~.
      cell: a name, as `rnn_jax.make_cell` takes.
      score: as `Attention`.
      value_features: size of the encoder's outputs; H by default.
      dtype, param_dtype: as in `Cell`.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell.

    Raises:
      ValueError: if the cell reads several feature axes or asks for a context itself; or as `Attention`.
    """

    check_exemptions = {"usage": "the matrix of the keys is used once for a sequence, in `Attention.memory`"}

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: str = "gru",
        score: str = "additive",
        value_features: int | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        value_features = hidden_features if value_features is None else value_features
        check_sizes(value_features=value_features)
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.value_features = value_features
        self.cell = make_inner_cell(cell, in_features + hidden_features, hidden_features, rngs=rngs, **dtypes, **kwargs)
        first, x = self.initialize_carry((in_features,)), jnp.zeros((in_features,), param_dtype)
        query_features = jax.eval_shape(self._inner_step, first, x)[1].shape[-1]
        self.attention = Attention(score, query_features, value_features, rngs=rngs, **dtypes)
        self.combine = draw_kernel(
            "lecun_normal", value_features + query_features, hidden_features, dtype=param_dtype, rngs=rngs
        )

    @property
    def gate_ranges(self) -> Mapping[str, tuple[float, float]]:  # type: ignore[override]  # those of the cell within
        return getattr(self.cell, "gate_ranges", {})

    def carry_spec(self) -> AttendingCarry:
        return jax.eval_shape(lambda: self.initialize_carry((self.in_features,)))

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Any = None,
    ) -> AttendingCarry:
        batch_shape = tuple(input_shape[:-1])
        inner_shape = (*batch_shape, self.in_features + self.hidden_features)
        arguments = () if carry_init is None else (carry_init,)
        inner = self.cell.initialize_carry(inner_shape, nnx.Rngs(0) if rngs is None else rngs, *arguments)
        return AttendingCarry(inner, jnp.zeros((*batch_shape, self.hidden_features), self.param_dtype))

    def context_spec(self) -> Memory:
        keys = self.attention.memory(jnp.zeros((5, self.value_features), self.param_dtype))
        return jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype), keys)

    def gates(  # type: ignore[override]  # a cell asks for a context by naming it
        self, carry: AttendingCarry, x: Array, *, context: Memory
    ) -> dict[str, Array]:
        del context  # it is read after the step
        if not isinstance(self.cell, Cell):
            return {}
        return gate_values(self.cell, carry.cell, self._fed(carry, x))

    def __call__(  # type: ignore[override]
        self, carry: AttendingCarry, x: Array, *, context: Memory, key: Array | None = None
    ) -> tuple[AttendingCarry, Array]:
        carry, y, _ = self.attend(carry, x, context, key)
        return carry, y

    def attend(
        self, carry: AttendingCarry, x: Array, context: Memory, key: Array | None = None
    ) -> tuple[AttendingCarry, Array, Array]:
        """Runs one step; returns the carry, y `[*batch, H]` and the weights `[*batch, S]`.

        Args:
          carry: as `initialize_carry` makes it.
          x: `[*batch, F]`.
          context: what is attended to.
          key: of `jax.random`, for a cell within that asks for it.

        Raises:
          ValueError: if x has not F features.
        """
        check_input(self, x)
        inner, state = self._inner_step(carry, x, key)
        weights = self.attention.weights(state, context)
        attended = self.attention.read(weights, context)
        joined = jnp.concatenate([attended.astype(self.param_dtype), state.astype(self.param_dtype)], axis=-1)
        y = jnp.tanh(self.dense(joined, self.combine[...]))
        return AttendingCarry(inner, y), self.as_output(y, x), weights

    def _fed(self, carry: AttendingCarry, x: Array) -> Array:
        """Returns x_t and h~_{t-1} side by side."""
        dtype = self.as_output(carry.attended, x).dtype
        return jnp.concatenate([x.astype(dtype), carry.attended.astype(dtype)], axis=-1)

    def _inner_step(self, carry: AttendingCarry, x: Array, key: Array | None = None) -> tuple[Carry, Array]:
        inner, state = step(self.cell, carry.cell, self._fed(carry, x), key=key)
        return inner, as_inputs(state, 1, x.ndim - 1)


def make_inner_cell(
    cell: str, in_features: int, hidden_features: int, *, dtype: Dtype | None, param_dtype: Dtype, **kwargs: Any
) -> nnx.RNNCellBase:
    """Builds the cell within a cell that attends; arguments as `rnn_jax.make_cell`.

    Raises:
      ValueError: if the cell reads several feature axes or asks for a context itself; or as `rnn_jax.make_cell`.
    """
    # A user-defined cell may not take what is the default anyway.
    asked: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    asked |= {} if param_dtype == jnp.float32 else {"param_dtype": param_dtype}
    inner = make_cell(cell, in_features, hidden_features, **asked, **kwargs)
    if inner.num_feature_axes != 1 or asks_for(inner, "context"):
        raise ValueError(f"cell {cell!r} cannot attend; allowed: a cell of one feature axis that asks for no context.")
    return inner
