"""The list of checks, and how they are run.

A check is not run behind the failure of one that it relies on, so that one mistake gives one or two failures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rnn_jax.errors import exception_text, first_line
from rnn_jax.flow.conformance.report import Check, Failed, NotApplicable
from rnn_jax.flow.conformance.subject import Subject

CheckFunction = Callable[[Subject], str]
CHECKS: dict[str, CheckFunction] = {}
_RELIES_ON: dict[str, tuple[str, ...]] = {}


def check(name: str, *, relies_on: Sequence[str] = ()) -> Callable[[CheckFunction], CheckFunction]:
    """Decorator: adds a check to the end of the report; it is not run where one that it relies on has failed."""

    def enter(function: CheckFunction) -> CheckFunction:
        CHECKS[name] = function
        _RELIES_ON[name] = tuple(relies_on)
        return function

    return enter


def run_all(names: Sequence[str], subject: Subject) -> tuple[Check, ...]:
    """Runs the checks of these names in this order, and writes their lines."""
    exemptions = exemptions_of(subject.cell)
    broken: dict[str, str] = {}  # a check that others cannot rely on, and the failure behind it
    causes: dict[str, str] = {}  # what failed, and the first check that said so
    lines = []
    for name in names:
        roots = [broken[other] for other in _RELIES_ON[name] if other in broken]
        if name in exemptions and name != "contract":
            line = Check(name, None, str(exemptions[name]), "exempt")
        elif roots:
            broken[name] = roots[0]
            line = Check(name, None, roots[0], "not run")
        else:
            line, cause = run(name, subject)
            if line.passed is False:
                broken[name] = first = causes.setdefault(cause, name)
                line = line if first == name else Check(name, False, first, "repeated")
        lines.append(line)
    return tuple(lines)


def run(name: str, subject: Subject) -> tuple[Check, str]:
    """Runs one check; returns its line, and the message of the exception behind a failure."""
    try:
        return Check(name, True, CHECKS[name](subject)), ""
    except Failed as failure:
        return Check(name, False, str(failure)), first_line(failure.__cause__ or failure)
    except NotApplicable as reason:
        return Check(name, None, str(reason)), ""
    except Exception as error:  # whatever a cell raises is a finding about the cell
        return Check(name, False, exception_text(error)), first_line(error)


def exemptions_of(cell: Any) -> Mapping[str, str]:
    """Returns what the cell declares in `check_exemptions`, nothing if that is no mapping (`contract` fails then)."""
    exemptions = getattr(cell, "check_exemptions", {})
    return exemptions if isinstance(exemptions, Mapping) else {}
