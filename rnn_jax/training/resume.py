"""How an experiment opens its run directory: a new one, or, with --resume, that of a run to go on with."""

import importlib.metadata
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from rnn_jax.tasks.fingerprint import package_version
from rnn_jax.training import run_directory


def open_run(
    experiment: str,
    out: str | None,
    flags: Mapping[str, Any],
    data: Mapping[str, str],
    *,
    resume: bool,
    question: str = "",
) -> pathlib.Path:
    """Makes the run directory, or finds the run there and holds its flags and data against these.

    Args:
      experiment: its name; the folder is named for it if none is given.
      out: the folder, as given; with `resume`, one that does not hold a run yet is made.
      flags: all flags of the run but `resume`, by name.
      data: the fingerprint of the task; entries that are the version of a package may differ.
      resume: whether to go on with a run that is there.
      question: that the run is to answer.

    Raises:
      ValueError: if the folder cannot be used, or, with `resume`, is not named, or a flag or the data differ.
    """
    if resume and out is None:
        raise ValueError("--resume needs the run to go on with; allowed: with --out=FOLDER.")
    out = run_directory.default_out(experiment) if out is None else out
    folder = pathlib.Path(os.path.expanduser(out))
    if not (resume and (folder / "config.json").exists()):
        return run_directory.create(out, {**flags, "data": data}, experiment=experiment, question=question)
    before, now = _load_config(folder)["flags"], json.loads(json.dumps(flags))
    for name in now:
        if name != "out" and before.get(name) != now[name]:
            raise ValueError(
                f"--{name}={now[name]} differs from the run in {out!r}, which has {before.get(name)};"
                " allowed with --resume: the same flags."
            )
    check_same_data(flags["task"], out, before["data"], data, "allowed with --resume")
    return folder


def check_same_data(task: str, out: str, before: Mapping[str, str], now: Mapping[str, str], allowed: str) -> None:
    """Raises ValueError unless the data of a task are those of a run; versions of packages may differ.

    Args:
      task: as --task named it.
      out: the folder of the run.
      before, now: fingerprint of the task in the run, and here.
      allowed: how the end of the sentence begins.
    """
    for name in sorted((before.keys() | now.keys()) - _versions(now).keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"the data of --task={task} have {name} {now.get(name)}, and those of the run in {out!r} have"
                f" {before.get(name)}; {allowed}: the same data."
            )


def other_versions(run_dir: pathlib.Path, data: Mapping[str, str]) -> str:
    """Says in one line which packages the run began with in another version than is here; "" if none."""
    begun = _load_config(run_dir)
    before = {**begun["flags"]["data"], **begun["versions"]}
    now = {**_versions(data), **run_directory.package_versions()}
    others = [f"{name} {before[name]}, here {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if not others:
        return ""
    return (
        f"The run in --out began with other packages ({'; '.join(others)}): it goes on, but may end with other"
        " numbers than one left alone."
    )


def resume_command(module: str, run_dir: pathlib.Path, out: str | None) -> str:
    """Returns the command line that goes on with this process's run.

    Args:
      module: as `python -m` runs it.
      run_dir: of the run.
      out: what --out was; None if it was not given.
    """
    given = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--resume=true")]
    if out is None:
        given.append(f"--out={run_dir}")
    return shlex.join(["python", "-m", module, *given, "--resume"])


def _load_config(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _versions(data: Mapping[str, str]) -> dict[str, str]:
    """The entries of a task's fingerprint that are the version of a package, and not content."""
    return {name: value for name, value in data.items() if _is_version(name, value)}


def _is_version(name: str, value: str) -> bool:
    try:
        return package_version(name) == value
    except importlib.metadata.PackageNotFoundError:
        return False
