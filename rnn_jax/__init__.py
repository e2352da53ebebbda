"""A laboratory bench for recurrent neural networks in JAX and Flax.

Put a cell on it, carry it through time, train it on a real sequence task, and see every gradient on its way back.
"""

from typing import Any

import rnn_jax.cells  # noqa: F401  (enters the cells in the registry)
from rnn_jax import flow
from rnn_jax.cell import Cell, PointwiseCell, add_bias, learn_carry, scale_by, step
from rnn_jax.constant import Constant, keep_constants
from rnn_jax.initializers import draw_kernel
from rnn_jax.layers import RNN, Bidirectional, Stack
from rnn_jax.registry import CellInfo, cell_info, list_cells, make_cell, register
from rnn_jax.unroll import Checkpointed, Truncated, Whole, batch_mesh, unroll
from rnn_jax.version import __version__

_CLASSES = {info.cls.__name__: info.cls for info in map(cell_info, list_cells())}

__all__ = [  # and the cells: `rnn_jax.LSTMCell`
    "RNN",
    "Bidirectional",
    "Cell",
    "CellInfo",
    "Checkpointed",
    "Constant",
    "PointwiseCell",
    "Stack",
    "Truncated",
    "Whole",
    "__version__",
    "add_bias",
    "batch_mesh",
    "cell_info",
    "draw_kernel",
    "flow",
    "keep_constants",
    "learn_carry",
    "list_cells",
    "make_cell",
    "register",
    "scale_by",
    "step",
    "unroll",
]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_CLASSES])
