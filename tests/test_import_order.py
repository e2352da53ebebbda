"""Imports run one way only: a room of the house knows the rooms before it, and none behind it."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

CONTRACT = {"constant", "activations", "initializers", "errors", "cell", "registry"}  # what a cell is

# What each part of the library may import from it.
MAY_IMPORT = {
    "constant": set(),
    "activations": set(),
    "initializers": set(),
    "errors": set(),
    "memory": set(),
    "cell": {"constant", "initializers"},
    "registry": CONTRACT - {"registry"},
    "cells": CONTRACT,
    "unroll": {*CONTRACT, "cells"},
    "layers": {*CONTRACT, "cells", "unroll"},
    "models": {*CONTRACT, "cells", "unroll", "layers"},
    "flow": {*CONTRACT, "cells", "unroll", "layers"},
    "tasks": {"memory"},
    "training": {*CONTRACT, "cells", "unroll", "layers", "models", "flow", "tasks", "memory"},
    "report": set(),
    "version": set(),
}


def part_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "rnn_jax").parts[0].removesuffix(".py")


def imported_names(path: pathlib.Path) -> set[str]:
    """What a file imports, anywhere in it: modules, and, of `from a import b`, both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_parts(path: pathlib.Path) -> set[str]:
    """The parts of rnn_jax that a file imports."""
    return {name.split(".")[1] for name in imported_names(path) if name.startswith("rnn_jax.")}


FILES = [
    path
    for path in sorted((ROOT / "rnn_jax").rglob("*.py"))
    if path.name != "__init__.py" or path.parent.name != "rnn_jax"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_stands_before_it(path):
    part = part_of(path)
    assert imported_parts(path) - {part} <= MAY_IMPORT[part]


def import_graph(root: pathlib.Path) -> dict[str, set[str]]:
    """The modules of a package, and which of them each imports, within functions as well.

    `from a import b` imports the module `a.b`, if there is one, and else the module `a` (or `a/__init__.py`). That a
    module runs the `__init__.py` of the packages it stands in does not count.
    """
    paths = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {part if part in paths else str(node.module) for part in parts}
        graph[name] &= paths.keys()
    return graph


def test_no_module_imports_itself_by_way_of_others():
    graph = import_graph(ROOT / "rnn_jax")
    assert "rnn_jax.tasks.task" in graph["rnn_jax.tasks.batching"]
    assert "rnn_jax.flow" in graph
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_a_cycle_within_functions_would_be_seen(tmp_path):
    package = tmp_path / "rnn_jax"
    package.mkdir()
    (package / "__init__.py").write_text("from rnn_jax.one import f\n")
    (package / "one.py").write_text("from rnn_jax import two\n")
    (package / "two.py").write_text("import rnn_jax.version\ndef f():\n    from rnn_jax.one import g\n")
    (package / "version.py").write_text("")
    with pytest.raises(graphlib.CycleError, match=re.escape("rnn_jax.one")):
        graphlib.TopologicalSorter(import_graph(package)).prepare()


def test_nobody_imports_an_experiment():
    """Nor does the library import a part of one, such as `experiments.benchmark_peers`."""
    scripts = list(ROOT.glob("experiments/*.py"))
    experiments = {f"experiments.{path.stem}" for path in scripts if "running.run(main" in path.read_text()}
    assert {"experiments.benchmark", "experiments.train"} <= experiments
    for path in [*ROOT.glob("rnn_jax/**/*.py"), *scripts]:
        names = imported_names(path)
        if path in scripts:
            assert not experiments & names, path
        else:
            assert not any(name.split(".")[0] == "experiments" for name in names), path


def test_a_wrong_import_would_be_seen(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from rnn_jax.training import step\n    import rnn_jax.report.read\n")
    assert imported_parts(wrong) == {"training", "report"}
