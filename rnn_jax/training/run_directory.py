"""The run directory: what an experiment leaves on disk. A killed run loses nothing that it had finished.

    config.json           experiment, question, flags, versions, device, git, argv, start_time_utc, cpu_count; of a
                          run that can be resumed also source (of its cells), and forced: what --resume=force
                          went on in spite of
    metrics.csv           step,name,value: one row a number, flushed at each write; holds no times
    timing.csv            step,seconds,examples_per_second: of a training run
    events.out.tfevents*  the same numbers for TensorBoard
    gradient_flow.npz     "steps" [L] and, for each "<cell>|<layer>|<part>", log10 adjoint norms [L, seeds, time];
                          where sequences differ in length, "<cell>|<layer>": over how many each is the mean [time]
    gradient_flow.csv     cell,layer,part,step,seed,t,lag,log10_norm: the same numbers, t = 1..T and lag = T - t; and
                          sequences, where they differ in length
    <instrument>.npz      of experiments.measure: "<cell>|<stage>|<layer>|<quantity>", [seeds, ...]; a stage is
                          "initialization", "step_<k>" or "trained"
    summary.csv           one row a result, columns chosen by the experiment
    checkpoints/<name>/   Orbax, with checksums (`rnn_jax.training.checkpoints`); <name>.previous/ is the one before
    .lock                 who writes here (`rnn_jax.training.lock`); no data

A layer is a path in the model ("rnn", "rnn/layers/0"); a part is a name in its carry ("c", "h"), "" for all of it.

This file writes; `rnn_jax.report.read` reads. The files are the only contract between them.
"""

import contextlib
import csv
import datetime
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TextIO

import jax
import numpy as np

from rnn_jax.training import lock

_ALLOWED = "allowed: a writable folder that is absent or empty"
# What file managers leave in a folder that their user takes to be empty, and what a start that was killed leaves.
_NO_DATA = (".DS_Store", ".localized", ".directory", "Thumbs.db", "desktop.ini", lock.NAME)
_DEBRIS = ".config.json."
# Whatever computes a run's numbers, orders its data or stores its state.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "orbax-checkpoint", "rnn_jax")
_KEY_SEPARATOR = "|"  # in gradient_flow.npz, where "/" and ":" are taken: they occur in layers and in cell names

StrPath = str | os.PathLike[str]
Profiles = Mapping[str, Mapping[tuple[str, str], Any]]  # cell -> (layer, part of its carry) -> [L, seeds, time]


class Damaged(ValueError):
    """A file of a run directory is not as it was written, or not of what it is read as; the message names a way out."""


def make_default_out(name: str) -> str:
    """Makes a folder for a run and returns its path: "runs/<name>-YYYYmmdd-HHMMSS" in local time, else with "-2".

    Raises:
      ValueError: it cannot be made.
    """
    stamped = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        os.makedirs("runs", exist_ok=True)
        for attempt in itertools.count(1):
            out = stamped if attempt == 1 else f"{stamped}-{attempt}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(out)  # fails where another process has just made it
                return out
    except OSError as error:
        raise ValueError(f"{stamped!r} cannot be made ({error.strerror}); allowed: with --out=FOLDER.") from error
    raise AssertionError("unreachable")


def create(
    out: str | None,
    config: Mapping[str, object],
    source: Mapping[str, object] | None = None,
    *,
    experiment: str = "",
    question: str = "",
) -> pathlib.Path:
    """Makes the folder `out`, with its parents, holds it for this process, and writes its config.json.

    Args:
      out: where; `~` is expanded. None: `make_default_out` of the experiment.
      config: the flags of the run; it stands under "flags" in config.json.
      source: of the code, as `rnn_jax.training.source` describes it; it stands under "source".
      experiment: the name of what makes the run.
      question: that the run is to answer.

    Raises:
      ValueError: `out` is empty, is a file, cannot be written, is being written by another process, or already holds
        a run or other files, which stay untouched.
    """
    if out is None:
        out = make_default_out(experiment)
    run_dir = pathlib.Path(os.path.expanduser(out))
    if not out.strip():
        raise ValueError(f"--out={out!r} names no folder; {_ALLOWED}")
    if str(run_dir).startswith("~"):
        raise ValueError(f"--out={out!r} names the home of an unknown user; {_ALLOWED}")
    _check_free(out, run_dir)
    about = {"experiment": experiment, "question": question, **_describe_run(config, source)}
    text = json.dumps(about, indent=2, default=_as_json)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character in `out`
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--out={out!r} cannot be written ({reason}); {_ALLOWED}") from error
    lock.hold(run_dir)
    _check_free(out, run_dir)  # once more: another process may have come and gone
    try:
        with replacing(run_dir / "config.json") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out={out!r} cannot be written ({error.strerror}); {_ALLOWED}") from error
    return run_dir


def _check_free(out: str, run_dir: pathlib.Path) -> None:
    """Raises ValueError unless a folder is absent or empty."""
    if os.path.exists(run_dir) and not os.path.isdir(run_dir):
        raise ValueError(f"--out={out!r} is a file; {_ALLOWED}")
    try:
        found = sorted(entry.name for entry in os.scandir(run_dir))
    except (FileNotFoundError, ValueError):
        return
    except OSError as error:
        raise ValueError(f"--out={out!r} cannot be read ({error.strerror}); {_ALLOWED}") from error
    if "config.json" in found:
        raise ValueError(f"--out={out!r} already holds a run; {_ALLOWED}")
    if "checkpoints" in found:
        copies = sorted((run_dir / "checkpoints").glob("[!.]*/config.json"))
        back = f"; a copy is {str(copies[0])!r}" if copies else ""
        raise ValueError(
            f"--out={out!r} holds checkpoints of a run, but not its config.json{back}; allowed: a run with its"
            " config.json, or a folder that is absent or empty"
        )
    others = [name for name in found if name not in _NO_DATA and not name.startswith(_DEBRIS)]
    if others:
        raise ValueError(f"--out={out!r} holds other files, such as {others[0]!r}; {_ALLOWED}")


def load_config(run_dir: StrPath) -> dict[str, Any]:
    """Reads config.json.

    Raises:
      Damaged: it is not what `create` has written; FileNotFoundError if there is none.
    """
    path = pathlib.Path(run_dir) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object of JSON")
        for key, kind in (("flags", dict), ("versions", dict), ("device", dict), ("argv", list)):
            if not isinstance(config.get(key), kind):
                raise ValueError(f"it has no {key!r}")
        if not isinstance(config.get("source", {}), dict) or not isinstance(config.get("forced", []), list):
            raise ValueError("'source' or 'forced' is not as it was written")
    except ValueError as error:  # of JSON and of UTF-8, too
        copies = sorted(path.parent.glob("checkpoints/[!.]*/config.json"))
        back = f"the copy of it, {str(copies[0])!r}, or " if copies else ""
        raise Damaged(f"{str(path)!r} is damaged ({error}); allowed: {back}another run.") from None
    return config


def package_versions() -> dict[str, str | None]:
    """Returns the versions that config.json notes, of Python and of packages by the names pip has for them."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


class MetricWriter:
    """Writes metrics to metrics.csv and to TensorBoard, as a context manager.

    Rows are appended to an existing metrics.csv. A last line cut short by a kill is dropped first: half a
    number reads as another number.

    Args:
      run_dir: the run directory.
      position: the `position` of an earlier writer; what was written behind it is dropped, from what TensorBoard
        shows, too. 0 drops everything.
    """

    def __init__(self, run_dir: StrPath, position: int | None = None):
        with _hidden("torch"):  # tensorboardX imports it where it can, which takes seconds, and works without
            import tensorboardX
            from tensorboardX.proto import event_pb2, summary_pb2

        path = pathlib.Path(run_dir) / "metrics.csv"
        self._file = path.open("a+", newline="", encoding="utf-8")
        content = path.read_bytes()[:position]
        content = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(content))
        self._csv = csv.writer(self._file, lineterminator="\n")
        if not content:
            self._csv.writerow(["step", "name", "value"])
            self._file.flush()
        # The suffix: tensorboardX names files by the second and overwrites one of the same name.
        suffix = f".{time.time_ns()}"
        self._events = tensorboardX.FileWriter(str(run_dir), flush_secs=5, filename_suffix=suffix)
        self._summary = summary_pb2.Summary
        if position is not None:
            self._purge(content.decode(), event_pb2)

    def write(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """Writes each number under its name, or as "prefix/name"; NaN and infinities are allowed."""
        numbers = {f"{prefix}/{name}" if prefix else name: float(value) for name, value in values.items()}
        self._csv.writerows([int(step), name, number] for name, number in numbers.items())
        self._file.flush()
        self._write_events(int(step), numbers)

    def _write_events(self, step: int, numbers: Mapping[str, float]) -> None:
        points = [self._summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._events.add_summary(self._summary(value=points), step)

    def _purge(self, kept: str, event_pb2: Any) -> None:
        """Has TensorBoard drop what it has from the last kept step on, and writes again what is kept of it.

        It drops by step alone: what was written at that step behind the position, but also, where several trainings
        follow each other, what an earlier one wrote at later steps.
        """
        rows = list(csv.DictReader(io.StringIO(kept)))
        last = int(rows[-1]["step"]) if rows else 0
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.add_event(event_pb2.Event(session_log=start), last)
        dropped: dict[int, dict[str, float]] = {}
        for row in rows:
            if int(row["step"]) >= last:
                dropped.setdefault(int(row["step"]), {})[row["name"]] = float(row["value"])
        for step in sorted(dropped):
            self._write_events(step, dropped[step])

    @property
    def position(self) -> int:
        """The length of metrics.csv in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def save_profiles(
    run_dir: StrPath,
    steps: Sequence[int] | np.ndarray,
    log10_norm: Profiles,
    sequences: Mapping[str, np.ndarray] | None = None,
) -> pathlib.Path:
    """Writes gradient profiles to gradient_flow.npz; those of other cells that it holds already stay.

    Where other cells were looked at at other steps, "steps" holds them all, and a profile is NaN where it has none.

    Args:
      run_dir: the run directory.
      steps: [L], the training steps at which profiles were taken; 0 is before the first update.
      log10_norm: the profiles; -inf (an exact zero) and NaN are kept.
      sequences: for each layer over how many sequences its profiles are the mean, `[time]`, where that differs.

    Returns:
      The path of gradient_flow.npz.

    Raises:
      ValueError: there are no profiles, an array is not [L, seeds, time] of float16, float32 or float64, all
        at least 1, or a name contains "|".
    """
    steps_L = np.asarray(steps)
    if steps_L.ndim != 1 or not any(log10_norm.values()):
        raise ValueError(f"profiles of {list(log10_norm)} at steps of shape {steps_L.shape}; allowed: some, at [L]")
    arrays: dict[str, np.ndarray] = {}
    for cell, profiles in log10_norm.items():
        for (layer, part), values in profiles.items():
            array_LST = np.asarray(values)
            if any(_KEY_SEPARATOR in word for word in (cell, layer, part)):
                raise ValueError(f"profile {cell!r}, {layer!r}, {part!r}: allowed: names without {_KEY_SEPARATOR!r}")
            is_float = np.issubdtype(array_LST.dtype, np.floating)
            if array_LST.ndim != 3 or len(array_LST) != len(steps_L) or not array_LST.size or not is_float:
                raise ValueError(
                    f"profile {cell!r}, {layer!r}, {part!r} is {array_LST.dtype}{list(array_LST.shape)}; "
                    f"allowed: NumPy floats [L, seeds, time] with L = {len(steps_L)} steps"
                )
            arrays[_KEY_SEPARATOR.join((cell, layer, part))] = array_LST

    counts = {_KEY_SEPARATOR.join((cell, layer)): n for cell in log10_norm for layer, n in (sequences or {}).items()}
    others_L, others, others_counts = _load_arrays(run_dir)
    others = {key: array for key, array in others.items() if key.split(_KEY_SEPARATOR)[0] not in log10_norm}
    counts |= {key: n for key, n in others_counts.items() if key.split(_KEY_SEPARATOR)[0] not in log10_norm}
    if others and not np.array_equal(others_L, steps_L):
        all_L = np.union1d(others_L, steps_L)
        others = {key: _at_steps(all_L, others_L, array) for key, array in others.items()}
        arrays = {key: _at_steps(all_L, steps_L, array) for key, array in arrays.items()}
        steps_L = all_L
    path = pathlib.Path(run_dir) / "gradient_flow.npz"
    with replacing(path) as temporary, temporary.open("wb") as file:
        # numpy's stub reads each of these keywords as its flag `allow_pickle`
        np.savez(file, steps=steps_L, **others, **arrays, **counts)  # type: ignore[arg-type]
    return path


def load_profiles(run_dir: StrPath) -> tuple[np.ndarray, dict[str, dict[tuple[str, str], np.ndarray]]]:
    """Returns the steps [L] and the profiles that `save_profiles` wrote; none of either if it wrote none."""
    steps_L, arrays, _ = _load_arrays(run_dir)
    log10_norm: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for key, array_LST in arrays.items():
        cell, layer, part = key.split(_KEY_SEPARATOR)
        log10_norm.setdefault(cell, {})[layer, part] = array_LST
    return steps_L, log10_norm


def load_sequences(run_dir: StrPath) -> dict[str, dict[str, np.ndarray]]:
    """Returns, by cell and layer, over how many sequences profiles are the mean, `[time]`, where that was saved."""
    sequences: dict[str, dict[str, np.ndarray]] = {}
    for key, count_T in _load_arrays(run_dir)[2].items():
        cell, layer = key.split(_KEY_SEPARATOR)
        sequences.setdefault(cell, {})[layer] = count_T
    return sequences


def save_profile_table(run_dir: StrPath) -> pathlib.Path:
    """Writes gradient_flow.csv, the numbers of gradient_flow.npz, and returns its path."""
    steps_L, arrays, counts = _load_arrays(run_dir)
    path = pathlib.Path(run_dir) / "gradient_flow.csv"
    with replacing(path) as temporary, _open_csv(temporary) as table:
        writer = csv.writer(table, lineterminator="\n")
        columns = ["cell", "layer", "part", "step", "seed", "t", "lag", "log10_norm"]
        writer.writerow([*columns, "sequences"] if counts else columns)
        for key, array_LST in arrays.items():
            names = key.split(_KEY_SEPARATOR)
            of_layer = counts.get(key.rpartition(_KEY_SEPARATOR)[0])
            for step, profile_ST in zip(steps_L.tolist(), array_LST.tolist(), strict=True):
                for seed, profile_T in enumerate(profile_ST):
                    for t, value in enumerate(profile_T, start=1):
                        row = [*names, step, seed, t, len(profile_T) - t, value]
                        writer.writerow(row if of_layer is None else [*row, of_layer[t - 1]])
    return path


def save_instrument(run_dir: StrPath, name: str, arrays: Mapping[tuple[str, str, str, str], Any]) -> pathlib.Path:
    """Writes what an instrument showed to <name>.npz; what it holds of other cells and stages stays.

    Args:
      run_dir: the run directory.
      name: of the instrument.
      arrays: by cell, stage ("initialization", "step_<k>", "trained"), layer and quantity, `[seeds, ...]`.

    Raises:
      ValueError: a name contains "|".
    """
    path = pathlib.Path(run_dir) / f"{name}.npz"
    kept: dict[str, np.ndarray] = {}
    if path.exists():
        measured = {key[:2] for key in arrays}
        with np.load(path) as before:
            others = [key for key in before.files if tuple(key.split(_KEY_SEPARATOR)[:2]) not in measured]
            kept = {key: before[key] for key in others}
    for key, array in arrays.items():
        if any(_KEY_SEPARATOR in word for word in key):
            raise ValueError(f"{name} {key!r}: allowed: names without {_KEY_SEPARATOR!r}")
        kept[_KEY_SEPARATOR.join(key)] = np.asarray(array)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **kept)  # type: ignore[arg-type]
    return path


def _load_arrays(run_dir: StrPath) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the steps of gradient_flow.npz, its profiles, and over how many sequences these are the mean."""
    path = pathlib.Path(run_dir) / "gradient_flow.npz"
    if not path.exists():
        return np.zeros(0, int), {}, {}
    try:
        with np.load(path) as arrays:
            found = {key: arrays[key] for key in arrays.files if key != "steps"}
            counts = {key: array for key, array in found.items() if key.count(_KEY_SEPARATOR) == 1}
            return arrays["steps"], {key: found[key] for key in found if key not in counts}, counts
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"{str(path)!r} is damaged ({reason[:100]}); allowed: the file that the run wrote.") from None


def _at_steps(all_L: np.ndarray, steps_L: np.ndarray, array_LST: np.ndarray) -> np.ndarray:
    """Returns an array of the steps it has, NaN at the others."""
    filled = np.full((len(all_L), *array_LST.shape[1:]), np.nan, array_LST.dtype)
    filled[np.searchsorted(all_L, steps_L)] = array_LST
    return filled


def save_table(run_dir: StrPath, rows: Sequence[Mapping[str, object]], name: str = "summary.csv") -> pathlib.Path:
    """Writes `rows` to summary.csv, or to another file, in the place of an earlier one, and returns its path.

    Raises:
      ValueError: there are no rows, or two rows have different columns.
    """
    if not rows:
        raise ValueError("a summary of no rows has no columns; allowed: at least one row")
    columns = list(rows[0])
    for row in rows:
        if set(row) != set(columns):
            raise ValueError(f"a summary row has columns {list(row)}; allowed: those of the first, {columns}")
    path = pathlib.Path(run_dir) / name
    with replacing(path) as temporary, _open_csv(temporary) as table:
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Makes `import <module>` fail where it has not been imported yet."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to, moved to `path` at the end: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _open_csv(path: pathlib.Path) -> TextIO:
    return path.open("w", newline="", encoding="utf-8")


def _describe_run(config: Mapping[str, object], source: Mapping[str, object] | None) -> dict[str, object]:
    devices = jax.devices()
    return {
        "flags": dict(config),
        "versions": package_versions(),
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "git": _git_state(),
        **({} if source is None else {"source": dict(source)}),
        "argv": sys.argv,
        "start_time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu_count": os.cpu_count(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, object]:
    """The commit this code stands at, and whether files differ from it; both None without a commit."""
    checkout = pathlib.Path(__file__).resolve().parents[2]
    try:
        top = _git(checkout, "rev-parse", "--show-toplevel")
        if pathlib.Path(top).resolve() != checkout:  # installed below somebody else's repository
            return {"commit": None, "dirty": None}
        return {
            "commit": _git(checkout, "rev-parse", "HEAD"),
            "dirty": bool(_git(checkout, "status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(checkout: pathlib.Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _as_json(value: object) -> object:
    """NumPy and JAX values become numbers and lists; whatever else JSON has no word for becomes its text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else str(value)
