"""What programs say to command lines they refuse, many in one process: to start one for each would take an hour.

For each program a process is forked from the server of `tests.experiments.command`: the flags of programs have the same
names. It runs one command line after another as `python -m` does, by `experiments.running.run`.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import sys
import tempfile
import traceback

from tests.experiments.command import ROOT, fork

_TAKE_WORDS = ("caption", "compare", "report", "translate")


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
    work = folder / "work"
    work.mkdir()
    (folder / "cache" / "rnn_jax").mkdir(parents=True)
    (folder / "cache" / "rnn_jax" / "tfds").symlink_to(data_dir)
    environment = {"XDG_CACHE_HOME": str(folder / "cache")}
    return {program: _run(program, lists, work, python_path, environment) for program, lists in jobs.items()}


def refusals(experiment: str, *lists: list[str]) -> list[str]:
    """Returns the sentence with which an experiment ends for each list of arguments; it may have warned before."""
    found = _run(experiment, lists, ROOT, ROOT, {})
    for answer in found:
        assert answer.status == 1, answer
        assert "Traceback" not in answer.said, answer
    return [answer.said.splitlines()[-1] for answer in found]


def _run(
    program: str, lists: list[list[str]], work: pathlib.Path, python_path: pathlib.Path, environment: dict[str, str]
) -> list[Answer]:
    with tempfile.TemporaryDirectory() as folder:
        told = pathlib.Path(folder, "told.json")
        process = fork(_answer_all, program, [*map(list, lists)], str(work), str(python_path), environment, str(told))
        process.join(900)
        assert process.exitcode == 0, program
        found = [Answer(**answer) for answer in json.loads(told.read_text())]
    assert len(found) == len(lists)
    return found


def _answer_all(
    program: str, lists: list[list[str]], work: str, python_path: str, environment: dict[str, str], told: str
) -> None:
    os.environ.update(environment)
    os.chdir(work)
    sys.path[:0] = [str(ROOT), python_path]
    main = importlib.import_module(f"experiments.{program}").main
    found = [_answer(program, main, words) for words in lists]
    pathlib.Path(told).write_text(json.dumps(found))


def _answer(program: str, main: object, words: list[str]) -> dict[str, object]:
    from absl import flags

    from experiments import running

    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    said, before, status = io.StringIO(), sorted(os.listdir()), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            running.run(main, takes_words=program in _TAKE_WORDS, argv=[program, *words])
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
    return {"status": status, "said": said.getvalue(), "left": sorted(set(os.listdir()) - set(before))}
