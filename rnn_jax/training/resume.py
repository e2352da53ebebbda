"""How an experiment opens its run directory: a new one, or, with --resume, that of a run to go on with."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rnn_jax.registry import split_names
from rnn_jax.tasks.fingerprint import package_version
from rnn_jax.training import checkpoints, lock, run_directory
from rnn_jax.training.source import changed_cells, describe_source

Resume = bool | Literal["force"]


def open_run(
    experiment: str,
    out: str | None,
    flags: Mapping[str, Any],
    data: Mapping[str, str],
    *,
    resume: Resume,
    question: str = "",
) -> pathlib.Path:
    """Makes the run directory, or finds the run there and holds its flags, its data and its cells against these.

    No other process writes there until this one ends.

    Args:
      experiment: its name; the folder is named for it if none is given.
      out: the folder, as given; with `resume`, one that does not hold a run yet is made.
      flags: all flags of the run but `resume`, by name; "cell" or "cells" names its cells.
      data: the fingerprint of the task; entries that are the version of a package may differ.
      resume: whether to go on with a run that is there; "force" goes on, and notes it in config.json, where the source
        of a user's cell has changed.
      question: that the run is to answer.

    Raises:
      ValueError: if the folder cannot be used, or, with `resume`, is not named, or a flag, the data or the source of a
        user's cell differ.
    """
    if resume and out is None:
        raise ValueError("--resume needs the run to go on with; allowed: with --out=FOLDER.")
    cells = [flags["cell"]] if "cell" in flags else split_names(flags["cells"]) if "cells" in flags else []
    source = describe_source(cells)
    if out is None or not (resume and pathlib.Path(os.path.expanduser(out), "config.json").exists()):
        return run_directory.create(out, {**flags, "data": data}, source, experiment=experiment, question=question)
    folder = pathlib.Path(os.path.expanduser(out))
    lock.hold(folder)
    if (folder / "metrics.csv").exists() and not any((folder / "checkpoints").glob("*")):
        print(f"The run in {out!r} has no checkpoint: it begins again.", file=sys.stderr)
    config = run_directory.load_config(folder)
    before, now = config["flags"], json.loads(json.dumps(flags))
    for name in now:
        if name != "out" and before.get(name) != now[name]:
            raise ValueError(
                f"--{name}={now[name]} differs from the run in {out!r}, which has {before.get(name)};"
                " allowed with --resume: the same flags."
            )
    noted = before.get("data")
    if not isinstance(noted, dict):
        raise run_directory.Damaged(
            f"{str(folder / 'config.json')!r} is damaged (it has no 'data' among its flags); allowed: a run of"
            f" experiments.{experiment}."
        )
    check_same_data(flags["task"], out, noted, data, "allowed with --resume")
    changed = changed_cells(config.get("source", {}), source)
    if changed and resume != "force":
        cell, file = next(iter(changed.items()))
        raise ValueError(
            f"the cell {cell!r} has another source than when the run in {out!r} began: {file!r} has changed; allowed"
            " with --resume: the same source. --resume=force goes on all the same, and notes it in config.json."
        )
    if changed:
        _note_forced(folder, config, source, changed)
    return folder


def _note_forced(
    folder: pathlib.Path, config: dict[str, Any], source: Mapping[str, Any], changed: Mapping[str, str]
) -> None:
    """Writes into config.json that the run goes on with other cells, and their source in the place of what it was."""
    entry = {
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "changed_cells": dict(changed),
        "source_before": config.get("source"),
    }
    config = {**config, "source": dict(source), "forced": [*config.get("forced", []), entry]}
    with run_directory.replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"--resume=force: the source of {', '.join(changed)} has changed; config.json notes it.", file=sys.stderr)


def load_notes(run_dir: pathlib.Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns the notes of the checkpoints of trainings that follow each other, of those that have one, in order.

    All trainings are finished, with "finished" in their note, but for the last, which can be restored. What the last
    checkpoint has copies of is given back to the run directory, if it is damaged.

    Raises:
      Damaged: a training cannot go on, or one before the last is not known to be finished.
    """
    saved = [name for name in names if checkpoints.has_checkpoint(run_dir, name)]
    notes = {}
    for name in saved:
        notes[name] = checkpoints.load_note(run_dir, name)
        if "finished" not in notes[name]:
            notes[name] = checkpoints.find_checkpoint(run_dir, name).note
            if name != saved[-1]:
                raise run_directory.Damaged(
                    f"the checkpoint {name!r} of {str(run_dir)!r} is damaged (it is not that of a finished training,"
                    f" and {saved[-1]!r} follows it); allowed: a new run."
                )
    if saved:
        checkpoints.restore_files(run_dir, saved[-1])
    return notes


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
    begun = run_directory.load_config(run_dir)
    before = {**begun["flags"].get("data", {}), **begun["versions"]}
    now = {**_versions(data), **run_directory.package_versions()}
    others = [f"{name} {before[name]}, here {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    library = describe_source(())["rnn_jax"]
    if begun.get("source", {}).get("rnn_jax", library) != library:
        others.append("other files of rnn_jax")
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
    given = [argument for argument in sys.argv[1:] if not re.match("--?(no)?resume($|=)", argument)]
    if out is None:
        given.append(f"--out={run_dir}")
    return shlex.join(["python", "-m", module, *given, "--resume"])


def _versions(data: Mapping[str, str]) -> dict[str, str]:
    """The entries of a task's fingerprint that are the version of a package, and not content."""
    return {name: value for name, value in data.items() if _is_version(name, value)}


def _is_version(name: str, value: str) -> bool:
    try:
        return package_version(name) == value
    except importlib.metadata.PackageNotFoundError:
        return False
