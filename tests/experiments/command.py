"""The command lines of the experiments, as a person runs them, without the seconds that the imports take.

A server imports the packages once for all commands of a test process; each command runs in a fork of it, which has
arguments, environment, output and exit status of its own.
"""

import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
_PACKAGES = ["matplotlib.pyplot", "rnn_jax.models", "rnn_jax.report.learning", "rnn_jax.training.loop", "scipy.linalg"]


def run(experiment: str, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python -m experiments.<experiment>` in the root of the repository.

    Args:
      experiment: its name.
      *arguments: of the command line.
      timeout: in seconds.
      **environment: variables that are not as in this process; not those of JAX, which the server has read.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        command = [f"experiments.{experiment}", *map(str, arguments)]
        process = _server().Process(target=_execute, args=(command, environment, *map(str, outputs)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in outputs)
        return subprocess.CompletedProcess(command, process.exitcode, stdout, stderr)


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_PACKAGES)
    return server


def _execute(command: list[str], environment: dict[str, str], stdout: str, stderr: str) -> None:
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), stream.fileno())
    os.chdir(ROOT)
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    module, *sys.argv[1:] = command
    runpy.run_module(module, run_name="__main__", alter_sys=True)
