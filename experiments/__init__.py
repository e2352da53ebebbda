"""Questions about recurrent networks, a program each: `python -m experiments.train --help`."""

import os
import sys
from types import TracebackType


def _end_quietly_if_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("Interrupted.", file=sys.stderr, flush=True)
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # While `python -m` looks for the program, before all imports, which take seconds.
    sys.excepthook = _end_quietly_if_interrupted
