"""Checkpoints: the last two of each name, each with the checksums of its files.

    checkpoints/<name>/            Orbax, note.json, copies of files of the run, and checksums.json, written last
    checkpoints/<name>.previous/   the one before it

Orbax does not notice a flipped bit in the weights: the checksums do. Where the newer checkpoint is damaged, the one
before it is read, and that is said on stderr.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from rnn_jax.tasks import Kind
from rnn_jax.training.run_directory import Damaged, StrPath, load_profiles, replacing

COPIED = ("config.json", "metrics.csv", "gradient_flow.npz")  # what a checkpoint can give back to its run directory
_CHECKSUMS, _NOTE, _PREVIOUS = "checksums.json", "note.json", ".previous"
_Tree = TypeVar("_Tree")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written.

    Attributes:
      path: its folder.
      note: what was saved with it.
    """

    path: pathlib.Path
    note: dict[str, Any]


def save_checkpoint(
    run_dir: StrPath, name: str, tree: Any, note: Mapping[str, Any] | None = None, files: Sequence[str] = ()
) -> pathlib.Path:
    """Writes a pytree of arrays (a model, an optimizer state, a dict of both) to checkpoints/<name>.

    The checkpoint of that name becomes the previous one after the new one is complete; a kill leaves one or the other.

    Args:
      run_dir: the run directory.
      name: of the checkpoint.
      tree: the arrays.
      note: what else belongs to it, as JSON can say it; `load_note` reads it.
      files: of the run directory, to be copied with it; those that are absent are left out.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: `name` is not the name of a folder.
    """
    path, new, previous, old = _places(run_dir, name)
    leaves = {key: _stored(leaf) for key, leaf in _named_leaves(tree).items()}
    if _is_complete(new) and not path.exists():  # left by a kill between the last two renames below
        new.rename(path)
    for debris in path.parent.glob(f"{new.name}*"):  # half-written when a kill came
        _remove(debris)
    with _without_orbax_chatter(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(new, args=ocp.args.StandardSave(leaves), force=True)
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(pathlib.Path(run_dir) / file, new / file)
    (new / _NOTE).write_text(json.dumps(dict(note or {})) + "\n", encoding="utf-8")
    checksums = {str(file.relative_to(new)): _sha256(file) for file in sorted(new.rglob("*")) if file.is_file()}
    with replacing(new / _CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(checksums, indent=0) + "\n", encoding="utf-8")
    if path.exists():
        _remove(old)
        if previous.exists():
            previous.rename(old)
        path.rename(previous)
    new.rename(path)
    _remove(old)
    return path


def find_checkpoint(run_dir: StrPath, name: str, *, newest: bool = False) -> Checkpoint:
    """Finds the newer of the two checkpoints of a name that is whole; says on stderr if it is the previous one.

    Args:
      run_dir: the run directory.
      name: the name given to `save_checkpoint`.
      newest: whether the previous one will not do.

    Raises:
      ValueError: there is no such checkpoint; Damaged, a ValueError, if none is whole.
    """
    faults: list[tuple[pathlib.Path, str]] = []
    for path in _existing(run_dir, name)[: 1 if newest else None]:
        fault = _fault(path)
        if not fault:
            found = Checkpoint(path, json.loads((path / _NOTE).read_text(encoding="utf-8")))
            if faults:
                step = f", of step {found.note['step']}" if "step" in found.note else ""
                _say(f"{_describe(*faults[0])}; what is used is the one before it, {str(path)!r}{step}.")
            return found
        faults.append((path, fault))
    others = sorted(path.name for path in path.parent.glob("[!.]*") if path.is_dir() and not _fault(path))
    also = f", and so is {faults[1][0].name!r} ({faults[1][1]})" if len(faults) > 1 else ""
    whole = f"what is still whole, {', '.join(map(repr, others))}, or a" if others else "only a"
    use = f" To use 'best': {_use_of_best(run_dir)}" if "best" in others else ""
    raise Damaged(f"{_describe(*faults[0])}{also}; allowed: {whole} new run.{use}")


def restore_checkpoint(run_dir: StrPath, name: str, like: _Tree, *, newest: bool = False, part: str = "") -> _Tree:
    """Reads checkpoints/<name>, or the one before it as `find_checkpoint`, into the structure of `like`.

    Args:
      run_dir: the run directory.
      name: the name given to `save_checkpoint`.
      like: a pytree with the leaves that were saved, or with `jax.ShapeDtypeStruct`s of them. JAX arrays come
        back with its sharding; where `like` has a NumPy array or a Python number, a NumPy array comes back.
      newest: as `find_checkpoint`.
      part: the path of `like` in what was saved, as `jax.tree_util.keystr` writes it; all of it by default.

    Raises:
      ValueError: as `find_checkpoint`, or it differs from `like` in a leaf's name, shape or dtype.
    """
    path = find_checkpoint(run_dir, name, newest=newest).path
    wanted = {part + key: _restored_as(leaf) for key, leaf in _named_leaves(like).items()}
    with _without_orbax_chatter(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata.tree
        found = {key: (tuple(leaf.shape), np.dtype(leaf.dtype)) for key, leaf in metadata.items()}
        others = {key: _restored_as(np.empty(*found[key])) for key in found if not key.startswith(part)}
        found = {key: form for key, form in found.items() if key not in others}
        for key in sorted(wanted.keys() | found.keys()):
            ours = (tuple(wanted[key].shape), np.dtype(wanted[key].dtype)) if key in wanted else None
            if found.get(key) != ours:
                raise Damaged(
                    f"checkpoint {name!r} has leaf {key!r} as {_show(found.get(key))}, `like` has it as "
                    f"{_show(ours)}; allowed: the same leaves, shapes and dtypes"
                )
        leaves = checkpointer.restore(path, args=ocp.args.StandardRestore(wanted | others))

    def unstored(key_path: jax.tree_util.KeyPath, leaf: Any) -> Any:
        array = leaves[part + jax.tree_util.keystr(key_path)]
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))
        return array

    return jax.tree_util.tree_map_with_path(unstored, like)


def name_at_step(name: str, step: int) -> str:
    """Names the checkpoint of the weights that a training kept at a step; `name` is that of the training's own."""
    return f"{name}-step_{step}"


def kept_steps(run_dir: StrPath, name: str) -> list[int]:
    """Returns the steps at which the training of a checkpoint kept its weights, ascending."""
    found = (pathlib.Path(run_dir) / "checkpoints").glob(f"{glob.escape(name)}-step_*")
    steps = {path.name[len(name_at_step(name, 0)) - 1 :].removesuffix(_PREVIOUS) for path in found}
    return sorted(int(step) for step in steps if step.isdecimal())


def has_checkpoint(run_dir: StrPath, name: str) -> bool:
    """Whether there is a checkpoint of a name, whole or not."""
    path, new, previous, _ = _places(run_dir, name)
    return path.exists() or previous.exists() or _is_complete(new)


def load_note(run_dir: StrPath, name: str) -> dict[str, Any]:
    """Reads the newer of the notes of checkpoints/<name> that is whole, {} if it was saved with none.

    Raises:
      ValueError: there is no such checkpoint; Damaged, a ValueError, if no note is whole.
    """
    for path in _existing(run_dir, name):
        if not _fault(path, only=_NOTE):
            return json.loads((path / _NOTE).read_text(encoding="utf-8"))
    return find_checkpoint(run_dir, name).note


def drop_damaged(run_dir: StrPath, name: str) -> None:
    """Has the previous checkpoint take the place of a damaged newer one, so that the next one does not push it out."""
    path, new, previous, _ = _places(run_dir, name)
    if previous.exists() and find_checkpoint(run_dir, name).path == previous:
        _remove(path)
        _remove(new)
        previous.rename(path)


def restore_files(run_dir: StrPath, name: str) -> list[str]:
    """Gives a run directory back the files that a checkpoint has copies of, and says on stderr what was damaged.

    metrics.csv may be longer than the copy, and goes on from it. gradient_flow.npz becomes that of the checkpoint.

    Args:
      run_dir: the run directory.
      name: of the checkpoint.

    Returns:
      the names of the files that were damaged.

    Raises:
      Damaged: a file is damaged, and so are its copies.
    """
    checkpoint = next((path for path in _existing(run_dir, name) if not _fault(path, only=_NOTE)), None)
    if checkpoint is None:
        checkpoint = find_checkpoint(run_dir, name).path
    note = json.loads((checkpoint / _NOTE).read_text(encoding="utf-8"))
    checksums = _checksums(checkpoint)
    damaged: list[str] = []
    for file in ("metrics.csv", "gradient_flow.npz"):
        if file not in checksums:
            continue
        path, copy = pathlib.Path(run_dir) / file, checkpoint / file
        if file == "metrics.csv":
            fault = _damage_of_metrics(path, checksums[file], note.get("position"))
        else:
            fault = _damage_of_profiles(path)
        if of_copy := _fault(checkpoint, only=file):
            if fault:
                raise Damaged(
                    f"{str(path)!r} is damaged ({fault}), and so is its copy in {str(checkpoint)!r} ({of_copy});"
                    " allowed: a new run."
                )
            continue
        if fault:
            damaged.append(file)
            _say(
                f"{str(path)!r} is damaged ({fault}): it is now as it was at step {note.get('step')}, from"
                f" {str(copy)!r}. What was written later is lost here, and made again where the run goes on."
            )
        if fault or (file != "metrics.csv" and _sha256(path) != checksums[file]):
            with replacing(path) as temporary:
                shutil.copyfile(copy, temporary)
    return damaged


def _damage_of_metrics(path: pathlib.Path, checksum: str, length: int | None) -> str:
    """Says what is wrong with metrics.csv, whose first bytes are to have a checksum; "" if nothing is."""
    if not path.exists():
        return "it is missing"
    found = path.read_bytes()
    if length is not None and len(found) < length:
        return f"it has {len(found):,} bytes, and had {length:,}"
    return "" if hashlib.sha256(found[:length]).hexdigest() == checksum else "it is not as it was written"


def _damage_of_profiles(path: pathlib.Path) -> str:
    """Says what is wrong with gradient_flow.npz, which may be of a later step than a checkpoint; "" if nothing is."""
    if not path.exists():
        return "it is missing"
    try:
        load_profiles(path.parent)
    except Damaged:
        return "it cannot be read"
    return ""


def _use_of_best(run_dir: StrPath) -> str:
    """Returns the command that reads the best model of a run of `experiments.train`, or else the function."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        task = json.loads((pathlib.Path(run_dir) / "task.json").read_text(encoding="utf-8"))
        if task["kind"] == Kind.STREAM.value:
            return f"python -m experiments.generate --run={run_dir} --prompt=..."
        if task["kind"] == Kind.SEQUENCE.value:
            name = "translate" if task["reads_tokens"] else "caption"
            return f"python -m experiments.{name} --run={run_dir} --evaluate"
    return f"rnn_jax.training.load.load_run({os.fspath(run_dir)!r}, kind)"


@functools.cache
def _say(sentence: str) -> None:
    """Says a sentence on stderr, once in a process: a checkpoint is looked up more than once."""
    print(sentence, file=sys.stderr)


def _describe(path: pathlib.Path, fault: str) -> str:
    return f"the checkpoint {str(path)!r} is damaged ({fault})"


def _fault(folder: pathlib.Path, only: str | None = None) -> str:
    """Says what of a checkpoint, or of one of its files, is not as it was written; "" if nothing is."""
    try:
        checksums = _checksums(folder)
    except FileNotFoundError:
        return f"{_CHECKSUMS} is missing" if folder.exists() else "it is missing"
    except (OSError, ValueError):
        return f"{_CHECKSUMS} cannot be read"
    for name, checksum in checksums.items():
        if only is not None and name != only:
            continue
        try:
            if _sha256(folder / name) != checksum:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """Reads the checksums of a checkpoint, by file; raises ValueError if they are none."""
    checksums = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
    if not isinstance(checksums, dict) or _NOTE not in checksums:
        raise ValueError("no checksums of a checkpoint")
    return checksums


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_complete(new: pathlib.Path) -> bool:
    return (new / _CHECKSUMS).exists()


def _places(run_dir: StrPath, name: str) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path, pathlib.Path]:
    """The folders of a checkpoint, of a new one while it is written, of the previous one, and of one to be dropped."""
    if not name or name != pathlib.PurePath(name).name or name.startswith(".") or name.endswith(_PREVIOUS):
        raise ValueError(
            f"no checkpoint can be named {name!r}; allowed: a folder name without a leading dot or {_PREVIOUS!r} behind"
        )
    folder = pathlib.Path(run_dir).resolve() / "checkpoints"  # Orbax takes absolute paths only
    return folder / name, folder / f".{name}.new", folder / f"{name}{_PREVIOUS}", folder / f".{name}.old"


def _existing(run_dir: StrPath, name: str) -> list[pathlib.Path]:
    """Returns where the checkpoints of a name are, the newer first; it may be missing.

    Raises:
      ValueError: there is none.
    """
    path, new, previous, _ = _places(run_dir, name)
    if not path.exists() and _is_complete(new):  # a kill between the last two renames of `save_checkpoint`
        path = new
    if path.exists() or previous.exists():
        return [path, previous] if previous.exists() else [path]
    saved = sorted(entry.name for entry in path.parent.glob("[!.]*"))
    raise ValueError(f"{os.fspath(run_dir)!r} has no checkpoint {name!r}; allowed: {saved}")


def _remove(path: pathlib.Path) -> None:
    """Removes a folder, or a file that is in its place."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
