"""The networks that `experiments.grid_lstm` compares, and its tasks as the paper lays them out, from settings of a run.

References:
  Kalchbrenner, Danihelka, Graves 2015, "Grid long short-term memory", arXiv 1507.01526.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax import tasks
from rnn_jax.constant import parameter_count
from rnn_jax.models import GridNetwork, SequenceClassifier
from rnn_jax.training.estimate import shapes_of

MakeModel = Callable[[nnx.Rngs], nnx.Module]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSettings:
    """The settings of both networks. Each stands under its name in the config.json of a run.

    Attributes:
      hidden: features of the Grid LSTM; the other network follows.
      depth: levels of both.
      shared, priority: as `GridLSTM`.
      patch: rows and columns of the pixels that a block reads, of an image.
      emb_size: features of the embedding, if the task reads tokens.
    """

    hidden: int
    depth: int
    shared: bool
    priority: str
    patch: int
    emb_size: int

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> "GridSettings":
        """Picks the settings from the flags of a run."""
        return cls(**{field.name: flags[field.name] for field in dataclasses.fields(cls)})


class Bits(GridNetwork):
    """All bits of a string at once, -1 or 1, as the features of one vector."""

    def __call__(self, xs: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return super().__call__(2.0 * jnp.asarray(xs).astype(jnp.float32) - 1.0, key=key)


class Pixels(GridNetwork):
    """An image without channels, as rows."""

    def __call__(self, xs: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return super().__call__(jnp.asarray(xs)[..., None], key=key)


def as_in_paper(task: tasks.Task) -> tasks.Task:
    """Returns a task as the paper lays it out: the parity of bits that are read all at once, any other as it is."""
    if task.name != "parity":
        return task

    def at_once(judge: Callable[..., Any]) -> Callable[..., Any]:
        """The parity of all bits is that asked at the last step."""
        return lambda model, batch: judge(model, {"xs": batch["tokens"], "label": batch["labels"][:, -1]})

    return dataclasses.replace(
        task,
        kind=tasks.Kind.ONE_ANSWER,
        loss=at_once(task.loss),
        score=at_once(task.score),
        description=f"Whether the number of ones among {task.seq_len} bits, read at once, is odd.",
    )


def make_grid(task: tasks.Task, settings: GridSettings) -> MakeModel:
    """Returns what builds the Grid LSTM for a task of `as_in_paper`.

    Raises:
      ValueError: what is returned does, if it cannot be built.
    """
    prior = {"depth": settings.depth, "shared": settings.shared, "priority": settings.priority}

    def grid(rngs: nnx.Rngs) -> nnx.Module:
        if task.name == "parity":
            return _bits(task, settings, "lstm", settings.hidden, rngs)
        if task.name == "digits":
            patch = settings.patch
            return Pixels(1, settings.hidden, task.out_features, axes=2, patch=patch, rngs=rngs, **prior)
        return _sequences(task, settings, "grid_lstm", settings.hidden, rngs, **prior)

    return grid


def make_networks(task: tasks.Task, settings: GridSettings) -> dict[str, MakeModel]:
    """Returns what builds the Grid LSTM and the network beside it, by name; the latter has about as many parameters.

    Raises:
      ValueError: if they cannot be built.
    """
    grid = make_grid(task, settings)
    ours = size_of(grid)

    def stacked(hidden: int, rngs: nnx.Rngs) -> nnx.Module:
        return _sequences(task, settings, "lstm", hidden, rngs, layers=settings.depth)

    other, beside = "stacked_lstm", stacked
    if task.name == "parity":
        other, beside = "tanh", functools.partial(_bits, task, settings, "tanh")
    # Their number is a polynomial of degree 2 in the hidden features: three sizes give it, without building every one.
    first, second, third = (size_of(functools.partial(beside, size)) for size in (1, 2, 3))

    def parameters(size: int) -> int:
        return first + (size - 1) * (second - first) + (size - 1) * (size - 2) // 2 * (third - 2 * second + first)

    sizes = range(1, 100 * settings.hidden)
    hidden = sizes[bisect.bisect_left(sizes, ours, key=parameters)]
    return {"grid_lstm": grid, other: functools.partial(beside, hidden)}


def size_of(make_model: MakeModel) -> int:
    """Returns the number of parameters."""
    return parameter_count(shapes_of(lambda: make_model(nnx.Rngs(0))))


def _sequences(
    task: tasks.Task, settings: GridSettings, cell: str, hidden: int, rngs: nnx.Rngs, **kwargs: Any
) -> nnx.Module:
    return SequenceClassifier(
        cell,
        task.in_features,
        hidden,
        task.out_features,
        emb_size=settings.emb_size if task.reads_tokens else None,
        per_step=task.kind is tasks.Kind.ANSWER_A_STEP,
        rngs=rngs,
        **kwargs,
    )


def _bits(task: tasks.Task, settings: GridSettings, transform: str, hidden: int, rngs: nnx.Rngs) -> nnx.Module:
    return Bits(
        task.seq_len,
        hidden,
        2,
        axes=0,
        depth_transform=transform,
        depth=settings.depth,
        shared=settings.shared,
        rngs=rngs,
    )
