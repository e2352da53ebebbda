"""A Grid LSTM that answers once: to a vector, a sequence or an image."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import check_sizes
from rnn_jax.cells.grid_lstm import GridLSTM

Array = jax.Array


class GridNetwork(nnx.Module):
    """A `GridLSTM` and a linear map of h of depth at the top, in the corner that has seen all: scores of classes.

    With no axes it is the feed-forward 1-LSTM, with one it reads sequences, with two images: the 3-LSTM. An image is
    cut into patches, whose pixels are the features of a place of the grid.

    The paper's 3-LSTM reads all places of the top level, through a hidden layer, and turns the image from level to
    level.

    Args:
      in_features: F of each place; for images pixels, channels of one.
      hidden_features: H of every dimension.
      out_features: number of classes or values.
      axes: of the inputs, 0, 1 or 2.
      patch: rows and columns of a patch, of an image.
      rngs: draws the parameters.
      **kwargs: as `GridLSTM`.

    Raises:
      ValueError: if a size is below 1, or a patch is asked for where there is no image; or as `GridLSTM`.

    References:
      Kalchbrenner, Danihelka, Graves 2015, "Grid long short-term memory", arXiv 1507.01526.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        axes: int,
        patch: int = 1,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        check_sizes(in_features=in_features, hidden_features=hidden_features, out_features=out_features, patch=patch)
        if patch > 1 and axes != 2:
            raise ValueError(f"patch={patch} with axes={axes} cuts no image; allowed: axes=2, or patch=1.")
        self.patch = patch
        self.grid = GridLSTM(in_features * patch**2, hidden_features, axes=axes, rngs=rngs, **kwargs)
        dtypes = {name: kwargs[name] for name in ("dtype", "param_dtype") if name in kwargs}
        self.head = nnx.Linear(hidden_features, out_features, **dtypes, rngs=rngs)

    def __call__(self, xs: Array, *, key: Array | None = None) -> Array:
        """Returns scores, `[*batch, out_features]`, for inputs `[*batch, *axes, F]`.

        Args:
          xs: the inputs.
          key: taken as every model takes one; nothing is random here.

        Raises:
          ValueError: for inputs of another shape, or images that patches do not cover evenly.
        """
        del key
        xs = jnp.asarray(xs)
        if self.patch > 1:
            xs = cut_patches(xs, self.patch)
        top = self.grid(xs)
        for _ in range(self.grid.axes):
            top = top[..., -1, :]
        return self.head(top)


def cut_patches(images: Array, size: int) -> Array:
    """Returns `[*batch, rows / size, columns / size, size size F]` of images `[*batch, rows, columns, F]`.

    Raises:
      ValueError: if rows or columns are no multiple of the size.
    """
    *batch, rows, columns, features = images.shape
    if rows % size or columns % size:
        raise ValueError(f"patch={size} does not cover images of {rows} x {columns}; allowed: a divisor of both.")
    cut = images.reshape(*batch, rows // size, size, columns // size, size, features)
    return jnp.moveaxis(cut, -4, -3).reshape(*batch, rows // size, columns // size, size * size * features)
