"""A laboratory bench for recurrent neural networks in JAX and Flax.

Put a cell on it, carry it through time, train it on a real sequence task, and see every gradient on its way back.
"""

import rnn_jax.cells  # noqa: F401  (enters the cells in the catalogue)
from rnn_jax import flow
from rnn_jax.cell import Cell, PointwiseCell, add_bias, catalogue, make_cell, register
from rnn_jax.constant import Constant, keep_constants
from rnn_jax.layers import RNN, Bidirectional, Stack
from rnn_jax.unroll import batch_mesh, unroll
from rnn_jax.version import __version__

__all__ = [
    "RNN",
    "Bidirectional",
    "Cell",
    "Constant",
    "PointwiseCell",
    "Stack",
    "__version__",
    "add_bias",
    "batch_mesh",
    "catalogue",
    "flow",
    "keep_constants",
    "make_cell",
    "register",
    "unroll",
]
