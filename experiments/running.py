"""How every experiment begins and ends: what a person is told in the place of a traceback, and the exit status.

* What cannot be, of flags, files and sizes: one sentence, status 1.
* Code of the user's own has failed: one sentence and the frames of that code, status 1.
* The system refuses, as a disk is full: one sentence, status 1.
* Ctrl-C: one line, status 130.
* Nobody reads on, as in `| head`: nothing, status 141.
* Anything else is a fault of ours: a traceback, status 1.
"""

import errno
import functools
import io
import math
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags

from rnn_jax.errors import is_refusal, user_failure

_LONGEST = 500  # characters of a sentence
_NO_SPACE = os.strerror(errno.ENOSPC)
_PATHS = {"data_dir", "embeddings", "features", "out", "run", "test_path"}  # flags that are a file or a folder
_LARGEST = 2**31 - 1  # what arrays of int32 count, and what all random number generators take for a seed
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # of Unicode: control, format, surrogate, separators of lines
_JOINERS = "\u200c\u200d"  # format characters that writing needs
_NAME_MAX = 255  # bytes of a name in most file systems


def run(main: Callable[[list[str]], None], *, takes_words: bool = False, argv: list[str] | None = None) -> NoReturn:
    """Parses the flags, runs an experiment and ends the process.

    Args:
      main: the experiment; it is given the name of the program and the words that are no flags.
      takes_words: whether there may be such words.
      argv: of the process by default.
    """
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):  # `nohup` ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(sys.stdout, "buffer"):
        sys.stdout = _Output(
            sys.stdout.buffer,
            encoding=sys.stdout.encoding,
            errors="backslashreplace",  # a terminal may not know all characters of the data
            line_buffering=sys.stdout.isatty(),
        )
    threading.excepthook = _instead_of(threading.excepthook)
    sys.unraisablehook = _instead_of(sys.unraisablehook)
    try:
        try:
            app.run(main, argv=argv, flags_parser=functools.partial(parse, takes_words=takes_words))
        finally:
            sys.stdout.flush()
    except BaseException as error:
        status = tell(error)
        if status is None:
            raise
        if status == 130 or _disk_is_full(error):  # what else runs at the end of a process would only fail, too
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def tell(error: BaseException) -> int | None:
    """Tells on stderr why an experiment ends, and returns its exit status; None if it is a fault of ours."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at the end goes there
        return 141
    # JAX raises an error of its own from an interrupt that comes while it compares pytrees.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        say("Interrupted.")
        return 130
    failure = user_failure(error)
    if failure is not None:
        sentence, frames = failure
        say(sentence)
        print(printable(frames, keep="\n"), file=sys.stderr)
        return 1
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            say(error.code)
            return 1
        return error.code or 0
    if isinstance(error, flags.Error | app.UsageError) or is_refusal(error):
        say(str(error))
        return 1
    if _disk_is_full(error):
        named = next((e for e in _chain(error) if isinstance(e, OSError) and e.filename is not None), None)
        say(f"{_NO_SPACE}{'' if named is None else f': {named.filename!r}'}. What was written before is as it was.")
        return 1
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        say(f"{error.filename!r}: {error.strerror}.")
        return 1
    return None


def say(sentence: str) -> None:
    """Prints a sentence on stderr; of one that is too long, the middle is left out."""
    text = printable(sentence)
    if len(text) > _LONGEST:
        end = _LONGEST // 3
        text = f"{text[: _LONGEST - end - 5]} ... {text[-end:]}"
    print(text, file=sys.stderr)


def printable(text: str, keep: str = "") -> str:
    r"""Returns a text with all characters escaped that move the cursor or change what is seen: `\x1b`, `\u202e`.

    Args:
      text: from a file, a flag or an error message.
      keep: characters that stay as they are: newlines.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _UNSEEN and char not in keep and char not in _JOINERS
        else char
        for char in text
    )


class _Output(io.TextIOWrapper):
    """Standard output that shows the control characters of data, where a terminal would obey them."""

    def write(self, text: str) -> int:
        return super().write(printable(text, keep="\n\t"))


def given_flags(program: str) -> dict[str, Any]:
    """Returns the flags that a program defines itself, with their values: what decides about its run.

    Without --resume and --instruments: neither changes what is trained, and a later command may add them.

    Args:
      program: its `__name__`.
    """
    own = flags.FLAGS.get_flags_for_module(sys.modules[program])
    return {flag.name: flag.value for flag in own if flag.name not in ("resume", "instruments")}


def parse(argv: list[str], *, takes_words: bool) -> list[str]:
    """Returns the words of a command line that are no flags, the name of the program first.

    Raises:
      flags.Error: if a flag is unknown, or has no value that it may have.
      app.UsageError: if there are words, and none may be.
    """
    words = flags.FLAGS(argv)
    if words[1:] and not takes_words:
        raise app.UsageError(f"unexpected argument {words[1]!r}; flags start with --")
    for name in flags.FLAGS:
        if flags.FLAGS[name].present:
            _check_value(name, flags.FLAGS[name].value)
    return words


def _check_value(name: str, value: Any) -> None:
    """Refuses what no flag of a kind can mean: a number that is not finite, an empty text, a path without a place."""
    if type(value) is int and abs(value) > _LARGEST:
        allowed = f"at most {_LARGEST}" if value > 0 else f"{-_LARGEST} or more"
        raise app.UsageError(f"--{name}={value} is out of range; allowed: {allowed}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise app.UsageError(f"--{name}={value} is no finite number; allowed: one.")
    if value == "":
        raise app.UsageError(f"--{name}='' is empty; allowed: at least one character.")
    path = value if name in _PATHS else value.partition(":")[2] if name == "task" and value else ""
    if not path:
        return
    if path.startswith("~") and os.path.expanduser(path) == path:
        raise app.UsageError(f"--{name}={value!r}: there is no user {path[1:].partition('/')[0]!r}; allowed: a path.")
    longest = max(path.split("/"), key=len)
    if len(os.fsencode(longest)) > _NAME_MAX:
        raise app.UsageError(
            f"--{name}={value!r} has a name of {len(longest)} characters; allowed: {_NAME_MAX} bytes in each."
        )


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether a disk is full; libraries in C++ tell so in the text of an exception alone."""
    return any(getattr(e, "errno", None) == errno.ENOSPC or _NO_SPACE in str(e) for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _instead_of(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """Returns a hook for exceptions of threads and destructors, where Python would print them and go on.

    Of a full disk the main thread tells. An interrupt is Ctrl-C, and would be lost.
    """

    def told(args: Any) -> None:
        if issubclass(args.exc_type, KeyboardInterrupt):
            say("Interrupted.")
            os._exit(130)
        if not _disk_is_full(args.exc_value):
            hook(args)

    return told
