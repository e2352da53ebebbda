"""The command lines of the experiments, as a person runs them, without the seconds that the imports take.

A server imports the packages once for all commands of a test process; each command runs in a fork of it, which has
arguments, environment, output, signals and exit status of its own. All commands share the session's cache of compiled
programs: one that is resumed, or that differs in a seed, compiles nothing again.

Figures take a third of the time of a short command. `figures=False` writes its report without drawing them, where a
test is of other things.
"""

import atexit
import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]
_PACKAGES = [
    "experiments.running", "matplotlib.backends.backend_agg", "matplotlib.pyplot", "rnn_jax.flow", "rnn_jax.models",
    "rnn_jax.report.learning", "rnn_jax.training.loop", "scipy.linalg", "tests.experiments.command",
]  # fmt: skip


class Started:
    """A command that runs, with what a `subprocess.Popen` has."""

    def __init__(self, experiment: str, *arguments: str, figures: bool = True, **environment: str):
        self.args = [f"experiments.{experiment}", *map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [pathlib.Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._process = fork(_execute, self.args, environment, figures, *map(str, self._outputs))
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Waits for the end; returns what was written to stdout and stderr."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.returncode = self._process.exitcode
        stdout, stderr = (path.read_text(encoding="utf-8") for path in self._outputs)
        self._folder.cleanup()
        return stdout, stderr


def run(experiment: str, *arguments: str, figures: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python -m experiments.<experiment>` in the root of the repository.

    Args:
      experiment: its name.
      *arguments: of the command line.
      figures: whether its report has them drawn.
      **environment: variables that are not as in this process; not those of JAX, which the server has read.
    """
    started = Started(experiment, *arguments, figures=figures, **environment)
    stdout, stderr = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)


def fork(function: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """Starts a function in a fork of the server; returns its process."""
    process = _server().Process(target=_with_cache, args=(function, *arguments))
    process.start()
    atexit.register(_end, process)  # or a test that fails might leave one that this process waits for at its end
    return process


def _end(process: multiprocessing.Process) -> None:
    if process.is_alive():
        process.kill()


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_PACKAGES)
    return server


def _with_cache(function: Callable[..., None], *arguments: object) -> None:
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs, too: each process has them
    function(*arguments)


def _execute(command: list[str], environment: dict[str, str], figures: bool, stdout: str, stderr: str) -> None:
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), stream.fileno())
    os.chdir(ROOT)
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if not figures:
        from rnn_jax.report import run_report

        run_report.write_report = functools.partial(run_report.write_report, draw=False)
    module, *sys.argv[1:] = command
    runpy.run_module(module, run_name="__main__", alter_sys=True)
