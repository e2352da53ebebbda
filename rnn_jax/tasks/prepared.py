"""Data that is prepared once, written as array_record by a tensorflow-datasets builder, and read from there."""

import abc
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rnn_jax.tasks.fingerprint import package_version

SPLITS = ("train", "validation", "test")
_VALIDATION_SHARE, _TEST_SHARE = 0.1, 0.2

LabelledTexts = tuple[list[str], list[str]]  # N texts and their N labels


class TextBuilder(tfds.core.GeneratorBasedBuilder):
    """Texts with a label each. A child says which, in `texts`, and is one text corpus."""

    VERSION = tfds.core.Version("1.0.0")

    @abc.abstractmethod
    def texts(self) -> Mapping[str, Iterable[tuple[str, str]]]:
        """Returns the pairs of text and label of each split."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(pairs) for split, pairs in self.texts().items()}

    def _generate_examples(self, pairs):
        for number, (text, label) in enumerate(pairs):
            yield number, {"text": text, "label": label}


def load_texts(
    builder_class: type[TextBuilder],
    package: str,
    data_dir: str | os.PathLike[str] | None,
    splits: Iterable[str] = SPLITS,
) -> dict[str, LabelledTexts]:
    """Reads the texts of a corpus, and prepares them first where that has not been done with this version.

    Args:
      builder_class: of the corpus.
      package: whose content the corpus is; every version of it has a folder of its own.
      data_dir: folder for prepared data; None is `default_data_dir()`.
      splits: which to read.

    Returns:
      the texts and labels of each split, in the order in which the builder gave them.
    """
    folder = _as_path(data_dir) / f"{package}-{package_version(package)}"
    return {
        split: ([e["text"].decode() for e in examples], [e["label"].decode() for e in examples])
        for split, examples in load(builder_class, folder, splits).items()
    }


def labeled(texts: LabelledTexts, class_names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Returns the texts and their labels as numbers of the classes, int32 `[N]`."""
    numbers = {name: number for number, name in enumerate(class_names)}
    return texts[0], np.array([numbers[label] for label in texts[1]], np.int32)


def split_of(group: str) -> str:
    """Says which split the examples of a group go to: 70 % to train, 10 % to validation, 20 % to test.

    The hash of the group's name decides, so that a group stays where it is when others come or go.
    """
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    if share < _TEST_SHARE:
        return "test"
    return "validation" if share < _TEST_SHARE + _VALIDATION_SHARE else "train"


def require(package: str, version: str, task_name: str, module: str | None = None) -> None:
    """Raises ValueError, with the command that helps, unless a package is installed; its module may be named apart."""
    if importlib.util.find_spec(module or package) is None:
        raise ValueError(
            f"the task {task_name!r} reads what comes with the package {package}, which is not installed;"
            f" run: pip install '{package}=={version}'"
        )


def default_data_dir() -> pathlib.Path:
    """Returns `rnn_jax/tfds` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache, "rnn_jax", "tfds")


def load(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    data_dir: str | os.PathLike[str] | None,
    splits: Iterable[str],
) -> dict[str, list[dict[str, Any]]]:
    """Reads splits into memory, and prepares them first where that has not been done.

    Any number of processes may be the first, and what a killed one has left is cleared away by the next.

    Returns:
      the examples of each split.

    Raises:
      ValueError: if the folder cannot be written.
    """
    folder = _as_path(data_dir)
    with contextlib.suppress(Exception):  # readers of damaged files raise what they like; the cure is below
        return _read(builder_class, folder, splits)
    try:
        with _lock(folder, builder_class.name):
            with contextlib.suppress(Exception):  # another process has prepared it while this one waited
                return _read(builder_class, folder, splits)
            _prepare(builder_class, folder)
            return _read(builder_class, folder, splits)
    except OSError as error:
        raise ValueError(
            f"data_dir={str(folder)!r} cannot be written ({error.strerror or error}); allowed: a writable folder."
        ) from error


def _as_path(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    return default_data_dir() if data_dir is None else pathlib.Path(data_dir).expanduser()


def _read(builder_class, data_dir: pathlib.Path, splits: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    builder = _builder(builder_class, data_dir)
    sources = {split: builder.as_data_source(split=split) for split in splits}
    return {split: source.__getitems__(range(len(source))) for split, source in sources.items()}


def _prepare(builder_class, data_dir: pathlib.Path) -> None:
    """Writes the data; only for the holder of the lock, for whom every folder found is debris.

    TFDS writes to `incomplete.*` and renames that at the end, so a kill leaves such a folder. A version
    folder that does not read comes from a half-made copy or a full disk; TFDS would take it for finished.
    """
    folder, version = data_dir / builder_class.name, str(builder_class.VERSION)
    for debris in (*folder.glob(version), *folder.glob(f"incomplete.*_{version}")):
        shutil.rmtree(debris)
    tfds.disable_progress_bar()  # it is a matter of seconds
    with contextlib.redirect_stdout(sys.stderr):  # TFDS announces itself by print; stdout is the caller's
        _builder(builder_class, data_dir).download_and_prepare()


def _builder(builder_class, data_dir: pathlib.Path) -> tfds.core.GeneratorBasedBuilder:
    return builder_class(data_dir=os.fspath(data_dir), file_format="array_record")


@contextlib.contextmanager
def _lock(data_dir: pathlib.Path, name: str) -> Iterator[None]:
    """Waits until no other process prepares in this folder. The system gives a killed process's lock back."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
