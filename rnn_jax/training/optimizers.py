"""Optimizers by name, with the schedule of their learning rate, all of optax. None of them moves a `Constant`."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from rnn_jax.constant import keep_constants

PyTree = Any
Rate = Any  # a float or an optax.Schedule

SCHEDULES = ("constant", "cosine", "one_cycle")


def _decayed(optimizer: Callable[[Rate], optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """Adds weight decay to the gradient: the classical L2 penalty."""

    def build(rate: Rate, decay: float) -> optax.GradientTransformation:
        penalty = optax.add_decayed_weights(decay, mask=kernels_only)
        return optax.chain(penalty, optimizer(rate)) if decay else optimizer(rate)

    return build


# (learning rate or schedule, weight decay) -> optimizer. AdamW, Lion and Muon decay weights apart from the gradient.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _decayed(optax.adam),
    "adamw": lambda rate, decay: optax.adamw(rate, weight_decay=decay, mask=kernels_only),
    "lion": lambda rate, decay: optax.lion(rate, weight_decay=decay, mask=kernels_only),
    # Muon is for matrices; what has one axis goes to its Adam, without decay.
    "muon": lambda rate, decay: optax.contrib.muon(rate, weight_decay=decay, weight_decay_mask=kernels_only),
    "rmsprop": _decayed(optax.rmsprop),
    "sgd": _decayed(lambda rate: optax.sgd(rate, momentum=0.9)),
}


def kernels_only(params: PyTree) -> PyTree:
    """Says of every parameter whether weight decay is for it: yes for matrices but embeddings, no for the others."""

    def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim > 1 and "embedding" not in jax.tree_util.keystr(path, simple=True, separator="/").split("/")

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def make_schedule(name: str, learning_rate: float, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Builds a schedule: update number -> learning rate.

    Args:
      name: "constant"; "cosine", which falls to 0 at the last update; or "one_cycle", which rises from a 25th of the
        learning rate and falls far below it.
      learning_rate: the largest one.
      steps: updates in all.
      warmup_steps: updates over which the rate rises in a straight line from 0; for "one_cycle", those of its rise
        (0: three tenths of all).

    Raises:
      ValueError: if an argument is out of range.

    References:
      Loshchilov, Hutter 2016, arXiv 1608.03983 (cosine); Smith, Topin 2017, arXiv 1708.07120 (one cycle).
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r} is unknown; allowed: {', '.join(SCHEDULES)}.")
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps={warmup_steps} is out of range; allowed: 0 to {steps - 1}, below the updates.")
    if name == "one_cycle":
        rise = warmup_steps / steps if warmup_steps else 0.3
        return optax.cosine_onecycle_schedule(steps, learning_rate, pct_start=rise)
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup_steps else learning_rate, learning_rate, warmup_steps, steps
        )
    if warmup_steps:
        return optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    return optax.constant_schedule(learning_rate)


def make_optimizer(
    name: str,
    learning_rate: float,
    *,
    schedule: str = "constant",
    steps: int = 1,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip: float | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Builds an optimizer.

    Args:
      name: one of `OPTIMIZERS`. SGD has a momentum of 0.9.
      learning_rate: the largest of the schedule.
      schedule, warmup_steps: as `make_schedule`; they count updates.
      steps: gradients in all, of which `accumulate` make an update.
      weight_decay: of matrices only, embeddings aside. AdamW, Lion and Muon take it from the weights, the others add
        it to the gradient.
      clip: largest global norm of the (accumulated) gradient; None does not clip.
      accumulate: how many gradients in a row are averaged for one update.

    Raises:
      ValueError: if an argument is out of range.

    References:
      Kingma, Ba 2014, arXiv 1412.6980 (Adam); Loshchilov, Hutter 2017, arXiv 1711.05101 (AdamW);
      Chen et al. 2023, arXiv 2302.06675 (Lion); Jordan 2024, https://kellerjordan.github.io/posts/muon (Muon);
      Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063 (clipping by norm).
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r} is unknown; allowed: {', '.join(OPTIMIZERS)}.")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate={learning_rate} is out of range; allowed: a finite number above 0.")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay={weight_decay} is out of range; allowed: a finite number, 0 or more.")
    _check_clip(clip)
    if not 1 <= accumulate <= steps:
        raise ValueError(f"accumulate={accumulate} is out of range; allowed: 1 to {steps}, the gradients in all.")
    rate: Rate = make_schedule(schedule, learning_rate, steps // accumulate, warmup_steps)
    optimizer = _complete(OPTIMIZERS[name](rate, weight_decay), clip)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, every_k_schedule=accumulate).gradient_transformation()
    return optimizer


def make_ensemble_optimizer(
    learning_rate: float | jax.Array, clip: float | None = None
) -> optax.GradientTransformation:
    """Builds the "adam" of `make_optimizer` with its learning rate in the state that `init` makes, not in the program.

    So the members of an ensemble may differ in it: what `init` makes of each member's own rate is stacked, and one
    update, of an optimizer of any rate, is mapped over all.

    Args:
      learning_rate: constant over training; it may be traced.
      clip: as `make_optimizer`, for each member by itself.

    Raises:
      ValueError: if `clip` is out of range.
    """
    _check_clip(clip)

    def build(learning_rate: Rate) -> optax.GradientTransformation:
        return _complete(OPTIMIZERS["adam"](learning_rate, 0.0), clip)

    return optax.inject_hyperparams(build)(learning_rate=learning_rate)


def _check_clip(clip: float | None) -> None:
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip} is out of range; allowed: above 0, or None.")


def _complete(optimizer: optax.GradientTransformation, clip: float | None) -> optax.GradientTransformation:
    """Clips the gradient to a global norm, unless that is None, and leaves every `Constant` of a model alone."""
    return keep_constants(optimizer if clip is None else optax.chain(optax.clip_by_global_norm(clip), optimizer))
