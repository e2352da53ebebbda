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
      passed: None if there is no verdict: the check does not apply to the cell, the cell is exempt, or it was not run.
      detail: what was measured and what is allowed; or the reason. Of a check that was not run, or that repeats the
        exception of another one, the name of that other check.
      note: `exempt`, `not run` or `repeated`; empty for an ordinary line.
    """

    name: str
    passed: bool | None
    detail: str
    note: str = ""


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
        """The names of the checks that failed, without those that only repeat the exception of another."""
        return tuple(line.name for line in self.checks if line.passed is False and line.note != "repeated")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __str__(self) -> str:
        lines = [line for line in self.checks if line.note not in ("not run", "repeated")]
        width = max(len(line.name) for line in lines)
        sign = {True: "ok", False: "FAIL", None: "n/a"}
        # The column is wider only where there is an exemption.
        margin = max(len(line.note) for line in lines) or 4
        text = [f"{line.note or sign[line.passed]:{margin}}  {line.name:{width}}  {line.detail}" for line in lines]
        for note, before in (("not run", "not run, as they rely on"), ("repeated", "the same exception as in")):
            for root in dict.fromkeys(line.detail for line in self.checks if line.note == note):
                names = [line.name for line in self.checks if line.note == note and line.detail == root]
                text.append(f"{before} {root}: {', '.join(names)}")
        ran = [line for line in lines if line.passed is not None]
        counts = {
            "more do not apply": sum(line.passed is None and not line.note for line in lines),
            "exempt": sum(line.note == "exempt" for line in lines),
            "not run": sum(line.note == "not run" for line in self.checks),
        }
        others = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        checks = f"{len(ran)} checks" + (f" ({others})" if others else "")
        if self.passed:
            verdict = f"{self.cell} passes all {checks}."
        else:
            verdict = f"{self.cell} FAILS {len(self.failed)} of {checks}: {', '.join(self.failed)}."
        return "\n".join([*text, "", verdict])


class Failed(Exception):
    """Raised by a check that found something that is not allowed."""


class NotApplicable(Exception):
    """Raised by a check that does not apply to the cell."""


def carry_text(cell: nnx.RNNCellBase, carry: Carry, batch_axes: int) -> str:
    """Writes the parts of a carry: `c float32[*batch, 5], h float32[*batch, 5]`."""
    parts = zip(carry_names(cell, carry), jax.tree.leaves(carry), strict=True)
    return ", ".join(f"{name} {shape_of(part, batch_axes)}".strip() for name, part in parts)


def structure_text(tree: PyTree) -> str:
    """Writes structure, dtypes and shapes: `LSTMCarry(c=float32[3, 5], h=float32[3, 5])`."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)).replace("'", "")


def shape_of(x: Any, batch_axes: int) -> str:
    """Writes dtype and shape: `float32[*batch, 5]`."""
    return f"{x.dtype}[{', '.join(['*batch', *map(str, x.shape[batch_axes:])])}]"
