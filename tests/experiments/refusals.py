"""What programs say to command lines they refuse, all in one start of Python: to start it for each would take an hour.

One process imports what all programs share, which starts no threads, and forks for each program: their flags have the
same names. A fork runs one command line after another as `python -m` does, by `experiments.running.run`.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
_TAKE_WORDS = ("caption", "compare", "report", "translate")
_SCRIPT = """
import contextlib, importlib, io, json, os, sys, traceback
import experiments.running, rnn_jax.flow, rnn_jax.tasks, rnn_jax.training.loop, rnn_jax.report.learning
from absl import flags

jobs, told, words_too = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def run(program, main, words):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    said, before, status = io.StringIO(), sorted(os.listdir()), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            experiments.running.run(main, takes_words=program in words_too, argv=[program, *words])
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
    return {"status": status, "said": said.getvalue(), "left": sorted(set(os.listdir()) - set(before))}

assert len(os.listdir("/proc/self/task")) == 1  # or a fork might wait for a lock for ever
for program, lists in jobs.items():
    child = os.fork()
    if not child:
        try:
            main = importlib.import_module("experiments." + program).main
            answers = [run(program, main, words) for words in lists]
            with open(os.path.join(told, program + ".json"), "w") as file:
                json.dump(answers, file)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.waitpid(child, 0)
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a program ended: its exit status, what it said on stderr, and what it left in its working directory."""

    status: int | None  # None after a traceback
    said: str
    left: list[str]


def answers(
    folder: pathlib.Path, jobs: dict[str, list[list[str]]], python_path: pathlib.Path, data_dir: pathlib.Path
) -> dict[str, list[Answer]]:
    """Runs each program on each of its lists of arguments.

    Args:
      folder: to work in; the working directory is an empty folder in it.
      jobs: lists of arguments by the name of the program.
      python_path: where modules of the user are.
      data_dir: of prepared data.
    """
    work, told = folder / "work", folder / "told"
    work.mkdir()
    told.mkdir()
    (folder / "cache" / "rnn_jax").mkdir(parents=True)
    (folder / "cache" / "rnn_jax" / "tfds").symlink_to(data_dir)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, python_path))),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    return _run(jobs, told, work, environment)


def refusals(experiment: str, *lists: list[str], environment: dict[str, str] | None = None) -> list[str]:
    """Returns the sentence with which an experiment ends for each list of arguments; it may have warned before."""
    environment = {"OPENBLAS_NUM_THREADS": "1", **(environment or {**os.environ, "JAX_PLATFORMS": "cpu"})}
    with tempfile.TemporaryDirectory() as told:
        found = _run({experiment: list(lists)}, pathlib.Path(told), ROOT, environment)[experiment]
    for answer in found:
        assert answer.status == 1, answer
        assert "Traceback" not in answer.said, answer
    return [answer.said.splitlines()[-1] for answer in found]


def _run(
    jobs: dict[str, list[list[str]]], told: pathlib.Path, work: pathlib.Path, environment: dict[str, str]
) -> dict[str, list[Answer]]:
    command = [sys.executable, "-c", _SCRIPT, json.dumps(jobs), str(told), json.dumps(_TAKE_WORDS)]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = {}
    for program, lists in jobs.items():
        path = told / f"{program}.json"
        assert path.exists(), f"{program}: {done.stderr}"
        found[program] = [Answer(**answer) for answer in json.loads(path.read_text())]
        assert len(found[program]) == len(lists)
    return found
