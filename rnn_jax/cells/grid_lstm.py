r"""Grid LSTM: LSTM memories along every dimension of a grid, its depth included.

The file goes from small to large: `GridBlock` is one block of N dimensions, `GridLSTM` a whole network of blocks over
any number of axes and depth, and `GridLSTMCell` one step of it along time, which is what `rnn_jax.unroll` runs.

References:
  Kalchbrenner, Danihelka, Graves 2015, "Grid long short-term memory", arXiv 1507.01526.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from rnn_jax.activations import as_activation
from rnn_jax.cell import Array, Cell, check_input, check_sizes, dense
from rnn_jax.initializers import draw_kernel
from rnn_jax.registry import register

LSTM = "lstm"  # the transform of a dimension with a memory; all others are names of activations
_GATES = {"input": (0.0, 1.0), "forget": (0.0, 1.0), "candidate": (-1.0, 1.0), "output": (0.0, 1.0)}
_PRIORITIES = ("depth", "time", "none")
_DIMENSIONS = ("time", "depth")  # of a block of the cell, in order


class GridState(NamedTuple):
    """What passes from a block to the next along one dimension: memory m and hidden vector h, `[*batch, H]` each."""

    m: Array
    h: Array


class GridBlock(nnx.Module):
    r"""One block of N dimensions (Kalchbrenner, Danihelka, Graves 2015, equations 1 to 4).

    Along each dimension k comes a state (m_k, h_k). With H = [h_1; ...; h_N], the N hidden vectors joined,

    .. math::
        (h'_k, m'_k) &= \mathrm{LSTM}(H, m_k, W_k), \quad\text{which is} \\
        g^u &= \sigma(H W^u_k + b^u_k), \quad g^f = \sigma(H W^f_k + b^f_k) \\
        g^c &= \tanh(H W^c_k + b^c_k), \quad g^o = \sigma(H W^o_k + b^o_k) \\
        m'_k &= g^f \circ m_k + g^u \circ g^c, \quad h'_k = \tanh(g^o \circ m'_k)

    A *priority* dimension is computed last. It reads H' in the place of H, in which the hidden vectors of the other
    dimensions are the new ones: h'_j for j without priority, h_k for k with it. A *non-LSTM* dimension has no gates and
    no memory: h'_k = alpha(H V_k + b_k); its m_k passes through unchanged.

    Columns of a kernel `[N H, 4 H]`: u, f, c, o, in the words of this library `input`, `forget`, `candidate`, `output`.
    The paper has no biases.

    Args:
      transforms: of each dimension, `"lstm"` or the name of an activation (`"tanh"`, `"identity"`).
      hidden_features: H, the same in all dimensions.
      priority: the numbers of the priority dimensions; the paper has one or none.
      tied: whether all dimensions have the same weights.
      gate_inside: h' = tanh(g^o o m') as in the paper; False: g^o o tanh(m'), as in `LSTMCell`.
      forget_bias: b^f before training; all other biases start at 0.
      kernel_init: of each block of H columns.
      dtype, param_dtype: as `rnn_jax.Cell`.
      rngs: draws the parameters.

    Raises:
      ValueError: if a transform or a priority is unknown, all dimensions have priority, or weights are to be tied that
        differ in shape.
    """

    def __init__(
        self,
        transforms: Sequence[str],
        hidden_features: int,
        *,
        priority: Sequence[int] = (),
        tied: bool = False,
        gate_inside: bool = True,
        forget_bias: float = 1.0,
        kernel_init: str | Initializer = "lecun_normal",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(dimensions=len(transforms), hidden_features=hidden_features)
        for transform in transforms:
            if transform != LSTM:
                as_activation(transform)
        dimensions = len(transforms)
        if not set(priority) < set(range(dimensions)):
            raise ValueError(
                f"priority={tuple(priority)} in a block of {dimensions} dimensions; allowed: numbers from 0 to"
                f" {dimensions - 1}, not all of them."
            )
        if tied and len({transform == LSTM for transform in transforms}) > 1:
            raise ValueError(f"tied=True with transforms={tuple(transforms)}; allowed: all of one kind.")
        self.transforms = tuple(transforms)
        self.hidden_features = hidden_features
        self.priority = tuple(priority)
        self.gate_inside = gate_inside
        self.dtype = dtype
        self.param_dtype = param_dtype
        drawn = self.transforms[:1] if tied else self.transforms
        rows, size = dimensions * hidden_features, hidden_features
        columns = [4 if transform == LSTM else 1 for transform in drawn]
        self.kernels = nnx.List(
            [draw_kernel(kernel_init, rows, size, count, dtype=param_dtype, rngs=rngs) for count in columns]
        )
        start = jnp.repeat(jnp.asarray([0.0, forget_bias, 0.0, 0.0], param_dtype), size)
        self.biases = nnx.List([nnx.Param(start if count == 4 else jnp.zeros(size, param_dtype)) for count in columns])

    def __call__(self, states: Sequence[GridState]) -> tuple[list[GridState], list[dict[str, Array]]]:
        """Returns the outgoing state of each dimension, given the incoming ones, and the gates of each by name."""
        hidden = [state.h for state in states]
        new: dict[int, GridState] = {}
        gates: dict[int, dict[str, Array]] = {}
        others = [k for k in range(len(states)) if k not in self.priority]
        for dimensions in (others, self.priority):
            joined = jnp.concatenate(hidden, axis=-1)
            for k in dimensions:
                new[k], gates[k] = self._transform(k, joined, states[k])
            hidden = [new[k].h if k in others else state.h for k, state in enumerate(states)]
        return [new[k] for k in range(len(states))], [gates[k] for k in range(len(states))]

    def _transform(self, k: int, joined: Array, state: GridState) -> tuple[GridState, dict[str, Array]]:
        weights = k % len(self.kernels)  # tied: there is one
        kernel, bias = self.kernels[weights][...], self.biases[weights][...]
        z = dense(joined, kernel, bias, dtype=self.dtype, param_dtype=self.param_dtype)
        if self.transforms[k] != LSTM:
            gates = {"hidden": as_activation(self.transforms[k])(z)}
        else:
            u, f, c, o = jnp.split(z, 4, axis=-1)
            u, f, c, o = jax.nn.sigmoid(u), jax.nn.sigmoid(f), jnp.tanh(c), jax.nn.sigmoid(o)
            gates = {"input": u, "forget": f, "candidate": c, "output": o}
        return self.advance(k, gates, state), gates

    def advance(self, k: int, gates: Mapping[str, Array], state: GridState) -> GridState:
        """Returns the outgoing state of dimension k, given its gates and its incoming state."""
        if self.transforms[k] != LSTM:
            return GridState(state.m, gates["hidden"])
        m = gates["forget"] * state.m + gates["input"] * gates["candidate"]
        h = jnp.tanh(gates["output"] * m) if self.gate_inside else gates["output"] * jnp.tanh(m)
        return GridState(m, h)


class GridLSTM(nnx.Module):
    """A Grid LSTM over any number of axes, and depth: the (axes + 1)-LSTM of the paper.

    At every place of the axes stand `depth` blocks, one above the other. Their dimensions are the axes, in order, and
    depth as the last. States of the axes begin at zero. At the bottom the input is projected to the state of depth:
    [m; h] = x I + b. What comes out is h of depth at the top. The axes are not in order of importance: along each the
    weights are the same at every place; along depth they are, if `shared` (the paper's *tied* networks).

    axes = 0 is a feed-forward network (the paper's 1-LSTM), 1 reads sequences, 2 images (3-LSTM). The paper's 3-LSTM
    turns the image between levels; here every level reads from the first place to the last.

    Args:
      in_features: F of the inputs.
      hidden_features: H of every dimension.
      axes: how many.
      depth: blocks, one above the other.
      shared: whether all levels have the same weights.
      priority: `depth` computes the transform of depth last (the paper's choice, as the output is read off there),
        `time` those of the axes, `none` all at once; without axes there is nothing to choose.
      depth_transform: `"lstm"`, or an activation: depth without memory.
      kernel_init: also of the projection of the input.
      **kwargs: as `GridBlock`.

    Raises:
      ValueError: if a size is below 1, `axes` below 0, or `priority` unknown; or as `GridBlock`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        axes: int = 1,
        depth: int = 2,
        shared: bool = True,
        priority: str = "depth",
        depth_transform: str = LSTM,
        kernel_init: str | Initializer = "lecun_normal",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        check_sizes(in_features=in_features, hidden_features=hidden_features, depth=depth)
        if axes < 0:
            raise ValueError(f"axes={axes} is out of range; allowed: 0 or more.")
        if priority not in _PRIORITIES:
            raise ValueError(f"priority={priority!r} is unknown; allowed: {', '.join(_PRIORITIES)}.")
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.axes = axes
        self.depth = depth
        self.dtype = dtype
        self.param_dtype = param_dtype
        last: dict[str, tuple[int, ...]] = {"depth": (axes,), "time": tuple(range(axes)), "none": ()}
        self.kernel = draw_kernel(kernel_init, in_features, hidden_features, 2, dtype=param_dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(2 * hidden_features, param_dtype))
        self.blocks = nnx.List(
            [
                GridBlock(
                    (LSTM,) * axes + (depth_transform,),
                    hidden_features,
                    priority=last[priority] if axes else (),
                    kernel_init=kernel_init,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    rngs=rngs,
                    **kwargs,
                )
                for _ in range(1 if shared else depth)
            ]
        )
        self.probes = nnx.data(None)

    def block(self, level: int) -> GridBlock:
        """Returns the block of a level, 0 at the bottom."""
        return self.blocks[level % len(self.blocks)]

    def project(self, x: Array) -> GridState:
        """Returns the state of depth below the first block, for x `[..., F]`."""
        z = dense(x, self.kernel[...], self.bias[...], dtype=self.dtype, param_dtype=self.param_dtype)
        return GridState(*jnp.split(z, 2, axis=-1))

    def __call__(self, xs: Array, **kwargs: Any) -> Array:
        """Returns h of depth at the top, `[*batch, *axes, H]`, for inputs `[*batch, *axes, F]`.

        Args:
          xs: the inputs.
          **kwargs: what `rnn_jax.RNN` is given, of which nothing is served: it must be None.

        Raises:
          ValueError: for inputs of another shape, or an argument that is not None.
        """
        for name, value in kwargs.items():
            if value is not None:
                raise ValueError(f"{name} is given to a Grid LSTM that runs over whole axes; allowed: None.")
        batch_axes = jnp.ndim(xs) - self.axes - 1
        if batch_axes < 0 or xs.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs have shape {jnp.shape(xs)}; allowed: [*batch, {'axis, ' * self.axes}{self.in_features}]."
            )
        places = tuple(range(self.axes))
        state = self.project(jnp.moveaxis(xs, tuple(batch_axes + k for k in places), places))
        for level in range(self.depth):
            probes = None if self.probes is None else self.probes[level]
            *_, state = self._sweep(self.block(level), (), state, probes, self.axes)
        return jnp.moveaxis(state.h, places, tuple(batch_axes + k for k in places)).astype(
            self.dtype or jnp.promote_types(xs.dtype, self.param_dtype)
        )

    def _sweep(
        self, block: GridBlock, entered: tuple[GridState, ...], depth: GridState, probes: Any, axes: int
    ) -> list[GridState]:
        """Carries the states of all dimensions over the axes that are left, by a scan in a scan in a scan.

        Args:
          block: of this level.
          entered: incoming states of the axes outside of this one, `[*axes left, *batch, H]`.
          depth: what comes from below, `[*axes left, *batch, H]`.
          probes: None, or what is added to the outgoing state of every dimension, `[*axes left, *batch, H]`.
          axes: how many are left.

        Returns:
          the outgoing states of all dimensions at all places, `[*axes left, *batch, H]`.
        """
        if axes == 0:
            states, _ = block((*entered, depth))
            return states if probes is None else jax.tree.map(jnp.add, states, probes)

        def one(carry: GridState, here: Any) -> tuple[GridState, list[GridState]]:
            states = self._sweep(block, (*here[0], carry), here[1], here[2], axes - 1)
            return states[len(entered)], states

        zeros = jax.tree.map(lambda part: jnp.zeros(part.shape[1:], part.dtype), depth)
        return jax.lax.scan(one, zeros, (entered, depth, probes))[1]

    def with_probes(self, probes: Any) -> "GridLSTM":
        """Returns the same network with zeros that it adds to every outgoing state; `rnn_jax.flow` calls this.

        Args:
          probes: for each level and dimension a `GridState` of `[*axes, *batch, H]`; or None.
        """
        grid = jax.tree.map(lambda leaf: leaf, self)
        grid.probes = nnx.data(probes)
        return grid

    @property
    def num_feature_axes(self) -> int:
        return 1

    @property
    def takes_context(self) -> bool:
        return False


@register("grid_lstm", paper="Kalchbrenner, Danihelka, Graves 2015, Grid long short-term memory", arxiv="1507.01526")
class GridLSTMCell(Cell):
    r"""Grid LSTM along time and depth, the paper's 2-LSTM (Kalchbrenner, Danihelka, Graves 2015): one step of time.

    A step holds `depth` blocks of two dimensions, time and depth, one above the other (`GridBlock` has their
    equations). Block l turns what comes from below and what it kept from the step before into what goes up and what it
    keeps:

    .. math::
        [m^d_0; h^d_0] &= x_t W + b \\
        (m^t_l, h^t_l)_t, (m^d_l, h^d_l) &= \mathrm{block}_l((m^t_l, h^t_l)_{t-1}, (m^d_{l-1}, h^d_{l-1})), \quad
            l = 1, ..., L \\
        y_t &= h^d_L

    A stacked LSTM has a memory along time alone; here depth has one, too, with gates of its own.

    Carry: for each level, the lowest first, `GridState(m, h)` of time, `[*batch, H]` each. Gates: of level 0
    `0/time_input`, `0/time_forget`, `0/time_candidate`, `0/time_output` and the same of `depth`, and so on for each
    level. The paper has no biases; `gate_inside=False` is the output gate of `LSTMCell`.

    Args:
      depth: L, how many blocks.
      shared: whether all blocks have the same weights: the paper's *tied* networks, as large at any L.
      priority: `depth` (the default) computes depth last, from the new h of time; `time` the reverse; `none` both from
        the old ones.
      depth_transform: `"lstm"`, or an activation (`"tanh"`, `"identity"`): depth without memory.
      tied, gate_inside, forget_bias, kernel_init: as `GridBlock`.
      dtype, param_dtype, rngs: as `PointwiseCell`.

    Raises:
      ValueError: as `GridLSTM`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        depth: int = 2,
        shared: bool = True,
        priority: str = "depth",
        depth_transform: str = LSTM,
        tied: bool = False,
        gate_inside: bool = True,
        forget_bias: float = 1.0,
        kernel_init: str | Initializer = "lecun_normal",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        self.grid = GridLSTM(
            in_features,
            hidden_features,
            depth=depth,
            shared=shared,
            priority=priority,
            depth_transform=depth_transform,
            tied=tied,
            gate_inside=gate_inside,
            forget_bias=forget_bias,
            kernel_init=kernel_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    @property
    def gate_ranges(self) -> dict[str, tuple[float, float]]:  # type: ignore[override]
        transforms = self.grid.block(0).transforms
        gated = [name for name, transform in zip(_DIMENSIONS, transforms, strict=True) if transform == LSTM]
        levels = range(self.grid.depth)
        return {f"{level}/{name}_{gate}": _GATES[gate] for level in levels for name in gated for gate in _GATES}

    def carry_spec(self) -> tuple[GridState, ...]:
        part = jax.ShapeDtypeStruct((self.hidden_features,), self.param_dtype)
        return (GridState(part, part),) * self.grid.depth  # type: ignore[arg-type]

    def gates(self, carry: tuple[GridState, ...], x: Array) -> dict[str, Array]:
        check_input(self, x)
        below = self.grid.project(x)
        named: dict[str, Array] = {}
        for level, before in enumerate(carry):
            (_, below), gates = self.grid.block(level)((before, below))
            for name, values in zip(_DIMENSIONS, gates, strict=True):
                named |= {f"{level}/{name}_{gate}": value for gate, value in values.items()}
        return named

    def __call__(self, carry: tuple[GridState, ...], x: Array) -> tuple[tuple[GridState, ...], Array]:
        gates = self.gates(carry, x)
        below, after = self.grid.project(x), []  # as `gates` has done: XLA makes one product of both
        for level, before in enumerate(carry):
            block = self.grid.block(level)
            time, depth = (_with_prefix(f"{level}/{name}_", gates) for name in _DIMENSIONS)
            after.append(block.advance(0, time, before))
            below = block.advance(1, depth, below)
        return tuple(after), self.as_output(below.h, x)


def _with_prefix(prefix: str, named: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
