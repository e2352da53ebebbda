"""The code that a run was made by: of its cells, where they are not of this library, and of the library itself.

A user's cell is known by the text of its module, and of the modules of the classes that it inherits from.
"""

import hashlib
import importlib
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

_LIBRARIES = ("builtins", "abc", "typing", "jax", "flax", "rnn_jax")


def describe_source(cells: Iterable[str]) -> dict[str, Any]:
    """Returns SHA-256 checksums of code: "rnn_jax", and "cells": name -> module -> of its text.

    Args:
      cells: as flags name them; those of the library are no entry of their own.
    """
    users = {name: _modules(name) for name in cells if ":" in name.partition("(")[0]}
    return {"rnn_jax": _library(), "cells": users}


def changed_cells(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Returns which cells have another source than before, with the file that it is now in; none that are new.

    Args:
      before, now: as `describe_source` returns them.
    """
    changed = {}
    for name, modules in now["cells"].items():
        noted = before.get("cells", {}).get(name, {})
        for module in sorted({*modules, *noted}):
            if noted and noted.get(module) != modules.get(module):
                changed[name] = getattr(sys.modules.get(module), "__file__", None) or module
    return changed


def _modules(name: str) -> dict[str, str]:
    """Returns the checksums of the modules of a cell: the one it is named by, its own, and those of its bases."""
    module, _, cls = name.partition("(")[0].partition(":")
    bases = getattr(importlib.import_module(module), cls).__mro__
    modules = {module, *(base.__module__ for base in bases if base.__module__.partition(".")[0] not in _LIBRARIES)}
    files = {module: getattr(sys.modules.get(module), "__file__", None) for module in sorted(modules)}
    return {
        module: hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest() for module, file in files.items() if file
    }


def _library() -> str:
    folder, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
