"""Questions about recurrent networks, a program each: `python -m experiments.train --help`."""

import os
import signal
import sys


def _end_quietly(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"Interrupted.\n")
    os._exit(130)


# While `python -m` looks for the program, before all imports: these take seconds, and an exception within that of a
# library in C++ may end in a crash. `experiments.running.run` puts back what Python does.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_quietly)
