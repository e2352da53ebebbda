"""Which package of Python's standard library a docstring documents: longer text, that installs with Python."""

import ast
import collections
import os
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rnn_jax.tasks import prepared, task
from rnn_jax.tasks.text import text_classification

_PACKAGES = 16
_SHORTEST = 40  # characters; shorter ones say little of where they stand
_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

_HasDocstring = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class StdlibDocstrings(prepared.TextBuilder):
    """The docstrings of the standard library, each text once, with the file it stands in for a label, in order."""

    def texts(self) -> Mapping[str, list[tuple[str, str]]]:
        return {"train": read_docstrings()}  # the tasks split it, each in its way


def docstrings(
    tokens: str = "word",
    vocab_size: int | None = None,
    max_length: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> task.Task:
    """Docstrings from the 16 packages of the standard library that have most; say which package it is.

    "tokens" are the words of a docstring of at least 40 characters; "label" is 0 to 15. The split is by file, as one
    file uses the same words all through. Which packages these are and what they hold depends on the version of Python,
    which the fingerprint notes.

    What to expect, of Python 3.11: the commonest class of the training split has 17 % of the test split. Logistic
    regression on the TF-IDF of 1-2-grams of words, as on that of 1-3-grams of characters, gets 67 %
    (`rnn_jax.tasks.text.tfidf_baseline`); a random split, on which it would get 88 %, flatters.

    Args:
      tokens, vocab_size, max_length: as `rnn_jax.tasks.text.text_classification`.
      data_dir: folder for prepared data; None is `rnn_jax/tfds` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Raises:
      ValueError: if an argument is out of range.

    References:
      Python Software Foundation. The Python Standard Library, https://docs.python.org/3/library.
    """
    texts, paths = load_docstrings(data_dir)
    of_file: dict[str, dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for text, path in zip(texts, paths):
        if "/" in path and len(text) >= _SHORTEST:
            of_file[path.split("/")[0]][path].append(text)
    sizes = {package: sum(map(len, files.values())) for package, files in of_file.items() if len(files) >= len(_SHARES)}
    class_names = tuple(sorted(sorted(sizes, key=lambda package: (-sizes[package], package))[:_PACKAGES]))
    splits: dict[str, tuple[list[str], list[int]]] = {split: ([], []) for split in _SHARES}
    for label, package in enumerate(class_names):
        for path, split in _split_files({path: len(texts) for path, texts in of_file[package].items()}).items():
            splits[split][0].extend(of_file[package][path])
            splits[split][1].extend([label] * len(of_file[package][path]))
    train, validation, test = ((texts, np.array(labels, np.int32)) for texts, labels in splits.values())
    return text_classification(
        name="docstrings",
        description=f"Which of {_PACKAGES} packages of Python's standard library a docstring documents.",
        source="Python Software Foundation, the Python standard library, https://docs.python.org/3/library",
        license="PSF-2.0",
        train=train,
        validation=validation,
        test=test,
        class_names=class_names,
        packages=("python", "numpy", "grain", "tensorflow-datasets", "array-record"),
        tokens=tokens,
        vocab_size=vocab_size,
        max_length=max_length,
    )


def load_docstrings(data_dir: str | os.PathLike[str] | None) -> prepared.LabelledTexts:
    """Returns the docstrings of the standard library and the file of each, by file and then by line."""
    return prepared.load_texts(StdlibDocstrings, "python", data_dir, splits=("train",))["train"]


def read_docstrings() -> list[tuple[str, str]]:
    """Returns (docstring, file) for all modules, classes and functions of the standard library, tests left out."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    seen = set()
    found = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if _NOT_LIBRARY & set(name.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old files have escapes that are none
                module = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some files are there to be wrong
            continue
        for node in _documented(module):
            text = ast.get_docstring(node)
            if text and text not in seen:
                seen.add(text)
                found.append((text, name.as_posix()))
    return found


def _documented(node: ast.AST) -> Iterator[_HasDocstring]:
    """What can have a docstring, in the order of the lines; `ast.walk` would look into every expression as well."""
    if isinstance(node, _HasDocstring):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(node, block, ()):
            yield from _documented(statement)


def _split_files(sizes: Mapping[str, int]) -> dict[str, str]:
    """Deals the files of a package out, the largest first, each to the split that lacks most examples yet."""
    lacking = {split: share * sum(sizes.values()) for split, share in _SHARES.items()}
    split_of: dict[str, str] = {}
    order: Sequence[str] = sorted(sizes, key=lambda path: (-sizes[path], path))
    for path in order:
        split = max(lacking, key=lambda split: lacking[split])
        split_of[path] = split
        lacking[split] -= sizes[path]
    return split_of
