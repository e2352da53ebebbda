"""The conformance kit: run it on a new cell first.

    print(rnn_jax.flow.check_cell("my.module:MyCell"))      (or: python -m experiments.check_cell --cell=MODULE:CLASS)

Every check is a function whose docstring says what is allowed. It returns what it measured, or raises `Failed` or
`NotApplicable`; any other exception is a failure too, reported with the line of the cell's code that raised it. In the
order of the report:

    step_checks.py      what a cell is, and what one step of it does
    unroll_checks.py    the cell carried through time, by the drivers and instruments of this library
    value_checks.py     the numbers: extreme inputs, long runs, gates

What the checks share: the list of them and how they are run (checks.py), the cell and its inputs (subject.py),
comparisons (numbers.py), the report (report.py).

Numbers are compared in float64 (the cell is built with `param_dtype=float64`, or its parameters are cast), where
rounding is 1e-16 and a mistake cannot hide behind a tolerance. References are slow and plain: a Python loop over time,
one example after another, differences of function values. They share no code with what they are held against. A
relative difference is the largest difference over the largest entry, of each array by itself.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import jax
from flax import nnx

from rnn_jax.flow.conformance import step_checks, unroll_checks, value_checks
from rnn_jax.flow.conformance.checks import CHECKS, run_all
from rnn_jax.flow.conformance.report import CellReport
from rnn_jax.flow.conformance.subject import Subject
from rnn_jax.registry import make_cell

_FILES = (step_checks, unroll_checks, value_checks)  # each enters its checks, in the order of the report


def check_cell(
    cell_or_name: str | type[nnx.RNNCellBase] | nnx.RNNCellBase,
    *,
    in_features: int = 3,
    hidden_features: int = 5,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> CellReport:
    """Holds a cell against the contract that everything in this library relies on.

    It takes some 5 seconds, prints nothing, and does not depend on the global settings for x64 and promotion.

    Args:
      cell_or_name: a name as `rnn_jax.make_cell` takes; a class, built as `Class(in_features, hidden_features,
        rngs=...)`; or a built cell, which keeps its sizes and its dtype (for the checks in float64 and bfloat16 its
        parameters are cast, and the attributes `dtype` and `param_dtype` of it and its submodules follow).
      in_features: F. For a cell with several feature axes, the size of the last; the others have size 4.
      hidden_features: H.
      seed: of parameters and inputs.
      only: names of the checks to run; all by default.

    Raises:
      ValueError: if there is no such cell or check, or the cell cannot be built.
    """
    chosen = list(CHECKS) if only is None else list(only)
    for name in chosen:
        if name not in CHECKS:
            raise ValueError(f"check {name!r} is unknown; allowed: {', '.join(CHECKS)}.")
    if isinstance(cell_or_name, str):
        builder = partial(make_cell, cell_or_name, in_features, hidden_features)
        subject = Subject(cell_or_name, builder, in_features, seed)
    elif isinstance(cell_or_name, type):
        builder = partial(cell_or_name, in_features, hidden_features)  # type: ignore[call-arg]
        subject = Subject(cell_or_name.__name__, builder, in_features, seed)
    else:
        in_features = getattr(cell_or_name, "in_features", in_features)
        subject = Subject(type(cell_or_name).__name__, None, in_features, seed, cell_or_name)
    with settings():
        return CellReport(subject.name, run_all(chosen, subject))


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Float64 at hand; promotion and NaN allowed: one check alone forbids promotion, and tells of it."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield
