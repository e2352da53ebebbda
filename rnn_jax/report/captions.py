"""Figures of captions: the image once for each word, with where the model looked when it wrote it."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.report.style import paper, save_figure

_CAPTION = (
    "The image, and then once for each word of the caption: the redder a place, the more weight it had when the word"
    " was written."
)
_COLUMNS = 8  # panels in a row


def plot_look(ax: Axes, image: np.ndarray, weights: np.ndarray | None = None) -> Axes:
    """Draws an image, and over it how much weight each place had.

    Args:
      ax: where to draw.
      image: `[rows, columns, channels]`, 0 to 1; of one channel, it is drawn as dark on light.
      weights: of the places, `[rows, columns]` of a coarser grid over the same image; None draws the image alone. They
        are shown on a scale of their own: the place with the most is the reddest.
    """
    rows, columns, channels = image.shape
    extent = (0, columns, rows, 0)
    gray: dict[str, Any] = (
        {"cmap": "Greys", "vmin": 0.0, "vmax": 1.0 if weights is None else 1.6} if channels == 1 else {}
    )
    ax.imshow(image[..., 0] if channels == 1 else image, extent=extent, **gray)
    if weights is not None:
        strength = weights / weights.max()
        ax.imshow(strength, cmap="Reds", alpha=0.75 * strength, extent=extent, interpolation="bilinear", vmin=0, vmax=1)
    ax.spines[["top", "right"]].set_visible(True)
    ax.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0))
    return ax


@paper()
def draw_caption(
    path: pathlib.Path, image: np.ndarray, words: Sequence[str], weights: np.ndarray, *, title: str | None = None
) -> pathlib.Path:
    """Saves the figure of a caption: the image, and then the image once a word.

    Args:
      path: of the PNG file; its folder is made if need be.
      image: as `plot_look`.
      words: U of them.
      weights: `[U, L]`, of L places that are read as a square grid if L is a square number, else as one column.
      title: above the image; none by default.
    """
    places = weights.shape[-1]
    side = round(places**0.5)
    grid = weights.reshape(len(words), *((side, side) if side**2 == places else (places, 1)))
    rows = -(-(len(words) + 1) // _COLUMNS)
    columns = -(-(len(words) + 1) // rows)
    figure = Figure(figsize=(0.86 * columns, 1.05 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for ax in axes[len(words) + 1 :]:
        ax.set_axis_off()
    plot_look(axes[0], image).set_title(title or "", fontsize=7)
    for ax, word, of_word in zip(axes[1:], words, grid):
        plot_look(ax, image, of_word).set_title(word, fontsize=7)
    return save_figure(figure, path, caption=_CAPTION)
