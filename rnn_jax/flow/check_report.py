"""What the conformance kit says: a line for each check, and the verdict on the cell."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from rnn_jax.cell import carry_names

Carry = Any
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
      name: what was checked.
      passed: None if the check does not apply to the cell.
      detail: what was measured and what is allowed; or the reason.
    """

    name: str
    passed: bool | None
    detail: str


@dataclasses.dataclass(frozen=True)
class CellReport:
    """What the checks found; printing it prints the report.

    Attributes:
      cell: the cell's name.
      checks: in the order in which they ran.
    """

    cell: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(line.name for line in self.checks if line.passed is False)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __str__(self) -> str:
        width = max(len(line.name) for line in self.checks)
        sign = {True: "ok", False: "FAIL", None: "n/a"}
        lines = [f"{sign[line.passed]:4}  {line.name:{width}}  {line.detail}" for line in self.checks]
        other = sum(line.passed is None for line in self.checks)
        checks = f"{len(self.checks) - other} checks" + (f" ({other} more do not apply)" if other else "")
        if self.passed:
            verdict = f"{self.cell} passes all {checks}."
        else:
            verdict = f"{self.cell} FAILS {len(self.failed)} of {checks}: {', '.join(self.failed)}."
        return "\n".join([*lines, "", verdict])


class Failed(Exception):
    """Raised by a check that found something that is not allowed."""


class NotApplicable(Exception):
    """Raised by a check that does not apply to the cell."""


def sentence(error: BaseException) -> str:
    """Returns the type of an exception and the first line of what it says."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:150]}{' ...' if len(text) > 150 else ''}".rstrip(": ")


def described(cell: nnx.RNNCellBase, carry: Carry, batch_axes: int) -> str:
    """Writes the parts of a carry: `c float32[*batch, 5], h float32[*batch, 5]`."""
    parts = zip(carry_names(cell, carry), jax.tree.leaves(carry), strict=True)
    return ", ".join(f"{name} {shape_of(part, batch_axes)}".strip() for name, part in parts)


def written(tree: PyTree) -> str:
    """Writes structure, dtypes and shapes: `LSTMCarry(c=float32[3, 5], h=float32[3, 5])`."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)).replace("'", "")


def shape_of(x: Any, batch_axes: int) -> str:
    """Writes dtype and shape: `float32[*batch, 5]`."""
    return f"{x.dtype}[{', '.join(['*batch', *map(str, x.shape[batch_axes:])])}]"
