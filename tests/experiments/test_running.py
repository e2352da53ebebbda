"""How programs end that are interrupted, whose disk is full, or whom nobody reads; and what is told of whose fault."""

import errno
import io
import os
import pathlib
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import running
from rnn_jax import make_cell
from rnn_jax.unroll.scan import where
from tests.experiments.command import Started

ROOT = pathlib.Path(__file__).parents[2]


def start(*arguments, **options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", *arguments]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **given)


def interrupted_when(process, condition):
    """Interrupts a process as soon as the condition holds; returns its exit status and what it said on stderr."""
    while process.poll() is None and not condition():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    return process.returncode, told


def has_loaded(process, library):
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    return lambda: library in maps.read_text()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux tells which libraries a process has loaded")
def test_an_interrupt_while_a_program_is_imported_is_one_line():
    process = start("experiments.train", "--task=adding")
    assert interrupted_when(process, has_loaded(process, "libjax_common.so")) == (130, "Interrupted.\n")


def test_an_interrupt_while_a_program_computes_is_one_line(tmp_path):
    out = tmp_path / "run"
    process = Started("long_sequences", "--cell=elman", "--hidden=2", "--lengths=10,9000000", f"--out={out}")
    status, told = interrupted_when(process, (out / "long_sequences.csv").exists)
    lines = [line for line in told.splitlines() if line and "length/s" not in line and "?length" not in line]
    assert (status, lines) == (130, ["Interrupted."])


def test_an_interrupt_that_became_an_error_within_jax_is_one_line(capsys):
    class Interrupts:
        def __hash__(self):
            return 0

        def __eq__(self, other):
            raise KeyboardInterrupt

        def __call__(self):
            pass

    one, other = (jax.tree.structure(jax.tree_util.Partial(Interrupts())) for _ in range(2))
    with pytest.raises(ValueError, match="checking equality of metadata") as raised:
        one == other  # noqa: B015
    assert running.tell(raised.value) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_reader_that_goes_away_and_a_full_disk_end_a_program_without_a_traceback():
    shown = ("experiments.tasks", "--task=parity", "--seq_len=3")
    read, write = os.pipe()
    os.close(read)
    gone = start(*shown, stdout=write)
    with open("/dev/full", "w") as full:
        no_space = start(*shown, stdout=full)
    os.close(write)
    assert gone.communicate(timeout=120)[1] == ""
    assert gone.returncode == 141
    said = no_space.communicate(timeout=120)[1]
    assert no_space.returncode == 1
    assert said == "No space left on device. What was written before is as it was.\n"


def raised(function, *args):
    """Returns what a function raises, without the frames of this file: they would be the user's."""
    try:
        function(*args)
    except BaseException as error:
        return error.with_traceback(error.__traceback__.tb_next)
    raise AssertionError("nothing was raised")


def of_libraries_in_cpp():
    """A full disk that only the text of the first exception tells of."""
    error = KeyError("metrics")
    error.__cause__ = RuntimeError("UNKNOWN: " + os.strerror(errno.ENOSPC))
    return error


def make(cell):
    return partial(make_cell, cell, 2, 3, rngs=nnx.Rngs(0))


def test_what_is_told_depends_on_whose_fault_it_is(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file")
    for error, status, told in (
        (raised(make("nosuch")), 1, "unknown cell 'nosuch'; allowed: elman"),
        (raised(make(f"lstm(kernel_init='\x1b[31m{'x' * 1000}')")), 1, r"initializer '\x1b[31mxxx"),
        (raised(where, np.zeros(3, bool), jnp.zeros((4, 2)), jnp.zeros((4, 2))), None, ""),  # within JAX
        (raised(int, "x"), None, ""),
        (raised(open, "/nosuch/file"), 1, "'/nosuch/file': No such file or directory."),
        (raised(running._check_value, "clip", float("nan")), 1, "--clip=nan is no finite number; allowed: one."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (SystemExit("a sentence"), 1, "a sentence"),
        (SystemExit(7), 7, ""),
        (SystemExit(), 0, ""),
        (full, 1, "No space left on device: '/a/file'. What was written before is as it was."),
        (of_libraries_in_cpp(), 1, "No space left on device. What was written before is as it was."),
    ):
        assert running.tell(error) == status, error
        said = capsys.readouterr().err
        assert said.startswith(told)
        assert said.count("\n") == bool(told)
        assert len(said) <= 501


def test_printable_text_stays_and_what_a_terminal_obeys_is_escaped():
    text = "ä 漢字 e\u0301 \U0001f469\u200d\U0001f680 a\u00a0b"
    assert running.printable(text) == text
    assert running.printable("\x1b[2J\r\n\u202e\u2028\udc80\x9b\ufeff") == (r"\x1b[2J\r\n\u202e\u2028\udc80\x9b\ufeff")
    assert running.printable("a\nb\tc\x07", keep="\n\t") == "a\nb\tc\\x07"
    output = running._Output(written := io.BytesIO(), encoding="ascii", errors="backslashreplace")
    print("re\x1b[31md é\tend", file=output, flush=True)
    assert written.getvalue() == b"re\\x1b[31md \\xe9\tend\n"
