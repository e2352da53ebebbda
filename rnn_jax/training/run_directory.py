"""The run directory: what an experiment leaves on disk. A killed run loses nothing that it had finished.

    config.json           flags, versions, device, git, argv, start_time_utc, cpu_count
    metrics.csv           step,name,value: one row a number, flushed at each write; holds no times
    timing.csv            step,seconds,examples_per_second: of a training run
    events.out.tfevents*  the same numbers for TensorBoard
    gradient_flow.npz     "steps" [L] and, for each "<cell>|<layer>|<part>", log10 adjoint norms [L, seeds, time]
    gradient_flow.csv     cell,layer,part,step,seed,t,lag,log10_norm: the same numbers, t = 1..T and lag = T - t
    summary.csv           one row a result, columns chosen by the experiment
    checkpoints/<name>/   Orbax

A layer is a path in the model ("rnn", "rnn/layers/0"); a part is a name in its carry ("c", "h"), "" for all of it.

This file writes; `rnn_jax.report.read` reads. The files are the only contract between them.
"""

import contextlib
import csv
import datetime
import importlib.metadata
import io
import json
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TextIO, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

_ALLOWED = "allowed: a writable folder that is absent, empty or without config.json"
# Whatever computes a run's numbers, orders its data or stores its state.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "orbax-checkpoint", "rnn_jax")
_KEY_SEPARATOR = "|"  # in gradient_flow.npz, where "/" and ":" are taken: they occur in layers and in cell names

StrPath = str | os.PathLike[str]
Profiles = Mapping[str, Mapping[tuple[str, str], Any]]  # cell -> (layer, part of its carry) -> [L, seeds, time]
_Tree = TypeVar("_Tree")


def default_out(name: str) -> str:
    """Names a folder that does not exist yet: "runs/<name>-YYYYmmdd-HHMMSS" in local time, else with "-2"."""
    stamped = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    out, attempt = stamped, 1
    while os.path.lexists(out):
        attempt += 1
        out = f"{stamped}-{attempt}"
    return out


def create(out: str, config: Mapping[str, object]) -> pathlib.Path:
    """Makes the folder `out`, with its parents, and writes its config.json.

    Args:
      out: where; `~` is expanded.
      config: the flags of the run; it stands under "flags" in config.json.

    Raises:
      ValueError: `out` is empty, is a file, cannot be written, or already holds a run, which stays untouched.
    """
    run_dir = pathlib.Path(os.path.expanduser(out))
    if not out.strip():
        raise ValueError(f"--out={out!r} names no folder; {_ALLOWED}")
    if os.path.exists(run_dir) and not os.path.isdir(run_dir):
        raise ValueError(f"--out={out!r} is a file; {_ALLOWED}")
    if os.path.lexists(run_dir / "config.json"):
        raise ValueError(f"--out={out!r} already holds a run; {_ALLOWED}")
    text = json.dumps(_describe_run(config), indent=2, default=_as_json)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with _replacing(run_dir / "config.json") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a null character in `out`
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--out={out!r} cannot be written ({reason}); {_ALLOWED}") from error
    return run_dir


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


def save_profiles(run_dir: StrPath, steps: Sequence[int] | np.ndarray, log10_norm: Profiles) -> pathlib.Path:
    """Writes gradient profiles to gradient_flow.npz; those of other cells that it holds already stay.

    Where other cells were looked at at other steps, "steps" holds them all, and a profile is NaN where it has none.

    Args:
      run_dir: the run directory.
      steps: [L], the training steps at which profiles were taken; 0 is before the first update.
      log10_norm: the profiles; -inf (an exact zero) and NaN are kept.

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

    others_L, others = _load_arrays(run_dir)
    others = {key: array for key, array in others.items() if key.split(_KEY_SEPARATOR)[0] not in log10_norm}
    if others and not np.array_equal(others_L, steps_L):
        all_L = np.union1d(others_L, steps_L)
        others = {key: _at_steps(all_L, others_L, array) for key, array in others.items()}
        arrays = {key: _at_steps(all_L, steps_L, array) for key, array in arrays.items()}
        steps_L = all_L
    path = pathlib.Path(run_dir) / "gradient_flow.npz"
    with _replacing(path) as temporary, temporary.open("wb") as file:
        # numpy's stub reads each of these keywords as its flag `allow_pickle`
        np.savez(file, steps=steps_L, **others, **arrays)  # type: ignore[arg-type]
    return path


def load_profiles(run_dir: StrPath) -> tuple[np.ndarray, dict[str, dict[tuple[str, str], np.ndarray]]]:
    """Returns the steps [L] and the profiles that `save_profiles` wrote; none of either if it wrote none."""
    steps_L, arrays = _load_arrays(run_dir)
    log10_norm: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for key, array_LST in arrays.items():
        cell, layer, part = key.split(_KEY_SEPARATOR)
        log10_norm.setdefault(cell, {})[layer, part] = array_LST
    return steps_L, log10_norm


def save_profile_table(run_dir: StrPath) -> pathlib.Path:
    """Writes gradient_flow.csv, the numbers of gradient_flow.npz, and returns its path."""
    steps_L, arrays = _load_arrays(run_dir)
    path = pathlib.Path(run_dir) / "gradient_flow.csv"
    with _replacing(path) as temporary, _open_csv(temporary) as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["cell", "layer", "part", "step", "seed", "t", "lag", "log10_norm"])
        for key, array_LST in arrays.items():
            names = key.split(_KEY_SEPARATOR)
            for step, profile_ST in zip(steps_L.tolist(), array_LST.tolist(), strict=True):
                for seed, profile_T in enumerate(profile_ST):
                    for t, value in enumerate(profile_T, start=1):
                        writer.writerow([*names, step, seed, t, len(profile_T) - t, value])
    return path


def _load_arrays(run_dir: StrPath) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    path = pathlib.Path(run_dir) / "gradient_flow.npz"
    if not path.exists():
        return np.zeros(0, int), {}
    with np.load(path) as arrays:
        return arrays["steps"], {key: arrays[key] for key in arrays.files if key != "steps"}


def _at_steps(all_L: np.ndarray, steps_L: np.ndarray, array_LST: np.ndarray) -> np.ndarray:
    """Returns an array of the steps it has, NaN at the others."""
    filled = np.full((len(all_L), *array_LST.shape[1:]), np.nan, array_LST.dtype)
    filled[np.searchsorted(all_L, steps_L)] = array_LST
    return filled


def save_table(run_dir: StrPath, rows: Sequence[Mapping[str, object]]) -> pathlib.Path:
    """Writes `rows` to summary.csv, replacing an earlier one, and returns its path.

    Raises:
      ValueError: there are no rows, or two rows have different columns.
    """
    if not rows:
        raise ValueError("a summary of no rows has no columns; allowed: at least one row")
    columns = list(rows[0])
    for row in rows:
        if set(row) != set(columns):
            raise ValueError(f"a summary row has columns {list(row)}; allowed: those of the first, {columns}")
    path = pathlib.Path(run_dir) / "summary.csv"
    with _replacing(path) as temporary, _open_csv(temporary) as table:
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_checkpoint(run_dir: StrPath, name: str, tree: Any, note: Mapping[str, Any] | None = None) -> pathlib.Path:
    """Writes a pytree of arrays (a model, an optimizer state, a dict of both) to checkpoints/<name>.

    A checkpoint of that name is replaced after the new one is complete; a kill leaves one or the other.

    Args:
      run_dir: the run directory.
      name: of the checkpoint.
      tree: the arrays.
      note: what else belongs to it, as JSON can say it; `load_note` reads it.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: `name` is not the name of a folder.
    """
    path, complete, replaced = _checkpoint_paths(run_dir, name)
    leaves = {key: _stored(leaf) for key, leaf in _named_leaves(tree).items()}
    if complete.exists() and not path.exists():  # left by a kill between the two renames below: the only one there is
        complete.rename(path)
    for debris in path.parent.glob(f"{complete.name}.*"):  # half-written when a kill came
        shutil.rmtree(debris, ignore_errors=True)
    arguments = ocp.args.StandardSave(leaves, custom_metadata=None if note is None else dict(note))
    with _without_orbax_chatter(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(complete, args=arguments, force=True)
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    complete.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)
    return path


def restore_checkpoint(run_dir: StrPath, name: str, like: _Tree) -> _Tree:
    """Reads checkpoints/<name> into the structure of `like`.

    Args:
      run_dir: the run directory.
      name: the name given to `save_checkpoint`.
      like: a pytree with the leaves that were saved, or with `jax.ShapeDtypeStruct`s of them. JAX arrays come
        back with its sharding; where `like` has a NumPy array or a Python number, a NumPy array comes back.

    Raises:
      ValueError: there is no such checkpoint, or it differs from `like` in a leaf's name, shape or dtype.
    """
    path = _existing_checkpoint(run_dir, name)
    wanted = {key: _restored_as(leaf) for key, leaf in _named_leaves(like).items()}
    with _without_orbax_chatter(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata.tree
        found = {key: (tuple(leaf.shape), np.dtype(leaf.dtype)) for key, leaf in metadata.items()}
        for key in sorted(wanted.keys() | found.keys()):
            ours = (tuple(wanted[key].shape), np.dtype(wanted[key].dtype)) if key in wanted else None
            if found.get(key) != ours:
                raise ValueError(
                    f"checkpoint {name!r} has leaf {key!r} as {_show(found.get(key))}, `like` has it as "
                    f"{_show(ours)}; allowed: the same leaves, shapes and dtypes"
                )
        leaves = checkpointer.restore(path, args=ocp.args.StandardRestore(wanted))

    def unstored(key_path: jax.tree_util.KeyPath, leaf: Any) -> Any:
        array = leaves[jax.tree_util.keystr(key_path)]
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))
        return array

    return jax.tree_util.tree_map_with_path(unstored, like)


def has_checkpoint(run_dir: StrPath, name: str) -> bool:
    """Whether checkpoints/<name> can be restored."""
    return any(path.exists() for path in _checkpoint_paths(run_dir, name)[:2])


def load_note(run_dir: StrPath, name: str) -> dict[str, Any]:
    """Reads the note of checkpoints/<name>, {} if it has none; raises ValueError if there is no such checkpoint."""
    path = _existing_checkpoint(run_dir, name)
    with _without_orbax_chatter(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return dict(checkpointer.metadata(path).item_metadata.custom_metadata or {})


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
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path, moved to `path` at the end: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _open_csv(path: pathlib.Path) -> TextIO:
    return path.open("w", newline="", encoding="utf-8")


def _describe_run(config: Mapping[str, object]) -> dict[str, object]:
    devices = jax.devices()
    return {
        "flags": dict(config),
        "versions": package_versions(),
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "git": _git_state(),
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


def _checkpoint_paths(run_dir: StrPath, name: str) -> tuple[pathlib.Path, ...]:
    """Where a checkpoint is, where a complete new one waits to take its place, and where the old one goes."""
    if not name or name != pathlib.PurePath(name).name or name.startswith("."):
        raise ValueError(f"no checkpoint can be named {name!r}; allowed: a folder name without a leading dot")
    folder = pathlib.Path(run_dir).resolve() / "checkpoints"  # Orbax takes absolute paths only
    return folder / name, folder / f".{name}.new", folder / f".{name}.old"


def _existing_checkpoint(run_dir: StrPath, name: str) -> pathlib.Path:
    path, complete, _ = _checkpoint_paths(run_dir, name)
    if not path.exists():  # a kill between the two renames of `save_checkpoint`
        path = complete
    if not path.exists():
        saved = sorted(entry.name for entry in path.parent.glob("[!.]*"))
        raise ValueError(f"{os.fspath(run_dir)!r} has no checkpoint {name!r}; allowed: {saved}")
    return path


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> jax.Array | np.ndarray:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _restored_as(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
    """The target that has Orbax put a leaf on the devices of `leaf`, not on those it was saved from."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _show(leaf: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return f"{leaf[1]}{list(leaf[0])}" if leaf else "absent"


@contextlib.contextmanager
def _without_orbax_chatter() -> Iterator[None]:
    """Drops Orbax's INFO lines, dozens a checkpoint; the user's log level and handlers stay as they are."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = absl_logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
