"""What a run notes of its data, to tell whether another run reads the same: versions of packages, and digests."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence

from rnn_jax.tasks.sources import Source


def fingerprint(
    train: Source,
    test: Source,
    packages: Sequence[str],
    first: int | None = None,
    validation: Source | None = None,
) -> dict[str, str]:
    """What a run must note to be made again: the content of the splits and who produced it.

    Args:
      train, test, validation: the splits.
      packages: names of distributions, as pip knows them.
      first: how many examples of each split to read; None reads all.

    Returns:
      "train_sha256", "test_sha256", "validation_sha256" if there is such a split, and the installed version of every
      package under its name.
    """
    splits = {"train": train, "validation": validation, "test": test}
    digests = {f"{name}_sha256": _sha256(split, first) for name, split in splits.items() if split is not None}
    return digests | {package: package_version(package) for package in packages}


def package_version(package: str) -> str:
    """Returns the version of what is installed, as pip knows it; "python" is the interpreter, for its library."""
    return platform.python_version() if package == "python" else importlib.metadata.version(package)


def _sha256(source: Source, first: int | None) -> str:
    digest = hashlib.sha256()
    for index in range(len(source) if first is None else min(first, len(source))):
        for name, array in sorted(source[index].items()):
            digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
