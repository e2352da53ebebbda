"""The cells of this library by name, and cells built from a name as a flag gives it."""

import ast
import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rnn_jax.cell import Cell, PointwiseCell, check_dtypes, check_finite, learn_carry
from rnn_jax.errors import exception_text, is_refusal, user_failure


@dataclasses.dataclass(frozen=True)
class CellInfo:
    """What the registry knows of a cell.

    Attributes:
      name: in flags and tables.
      cls: the class.
      paper: authors, year, title or venue.
      arxiv: number of the paper; None if it is not there.
      family: the file in `rnn_jax/cells` that the cell is in.
    """

    name: str
    cls: type[nnx.RNNCellBase]
    paper: str
    arxiv: str | None

    @property
    def family(self) -> str:
        return self.cls.__module__.rpartition(".")[2]

    @property
    def recurrence(self) -> str:
        """What the cell promises: `pointwise` after one product, which the fast path runs, or `general`."""
        fast = issubclass(self.cls, PointwiseCell) and self.cls.__call__ is PointwiseCell.__call__
        return "pointwise" if fast else "general"


_REGISTRY: dict[str, CellInfo] = {}


def register(
    name: str, *, paper: str, arxiv: str | None = None
) -> Callable[[type[nnx.RNNCellBase]], type[nnx.RNNCellBase]]:
    """Class decorator: enters a cell in the registry under a name.

    Args:
      name: as a flag gives it.
      paper: authors, year, title or venue.
      arxiv: number of the paper, `1406.1078`.
    """

    def enter(cls: type[nnx.RNNCellBase]) -> type[nnx.RNNCellBase]:
        if name in _REGISTRY:
            raise ValueError(f"cell name {name!r} is taken by {_REGISTRY[name].cls.__name__}; allowed: a new name.")
        _REGISTRY[name] = CellInfo(name, cls, paper, arxiv)
        return cls

    return enter


def list_cells(family: str | None = None) -> list[str]:
    """Returns the names of the cells, of all or of one family, in alphabetical order.

    Raises:
      ValueError: if there is no such family.
    """
    families = sorted({info.family for info in _REGISTRY.values()})
    if family is not None and family not in families:
        raise ValueError(f"family={family!r} is unknown; allowed: {', '.join(families)}.")
    return sorted(name for name, info in _REGISTRY.items() if family in (None, info.family))


def cell_info(name: str) -> CellInfo:
    """Returns what the registry knows of a cell.

    Raises:
      ValueError: if there is no cell of this name.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown cell {name!r}; allowed: {', '.join(list_cells())}.")
    return _REGISTRY[name]


def cell_table() -> str:
    """Returns the cells as a Markdown table: name, class, family, recurrence, paper."""
    lines = ["| name | class | family | recurrence | paper |", "| --- | --- | --- | --- | --- |"]
    for info in map(cell_info, list_cells()):
        paper = (
            info.paper if info.arxiv is None else f"{info.paper}, [{info.arxiv}](https://arxiv.org/abs/{info.arxiv})"
        )
        lines.append(f"| `{info.name}` | `{info.cls.__name__}` | {info.family} | {info.recurrence} | {paper} |")
    return "\n".join(lines)


def make_cell(name: str, in_features: int, hidden_features: int, *, rngs: nnx.Rngs, **kwargs: Any) -> nnx.RNNCellBase:
    """Builds a cell from its name.

    Args:
      name: a name of `list_cells()` (`lstm`) or `path.to.module:Class`, either of them with constructor arguments
        behind it if wanted: `lstm(forget_bias=0)`, `elman(activation="relu")`. Every `Cell` also takes
        `learned_carry=True`: its first carry is a parameter.
      in_features: F, size of the input.
      hidden_features: H, size of the state.
      rngs: the stream `params` draws the parameters.
      **kwargs: more constructor arguments; those in `name` win.

    Raises:
      ValueError: if there is no such cell, it takes no such argument, or one of another kind. What the constructor of
        a user's cell raises is left as it is.
    """
    path, written = _parse_spec(name)
    cls = _find_class(path)
    kwargs = {**kwargs, **written}
    learned_carry = issubclass(cls, Cell) and kwargs.pop("learned_carry", False)
    _check_literal(name, "learned_carry", learned_carry, bool)
    known = _constructor_arguments(cls)
    for argument in kwargs:
        if argument not in known:
            raise ValueError(f"cell {path!r} has no argument {argument!r}; allowed: {', '.join(known)}.")
    for argument, value in written.items():
        if argument != "learned_carry":
            _check_literal(name, argument, value, known[argument])
    check_dtypes(dtype=kwargs.get("dtype"), param_dtype=kwargs.get("param_dtype", "float32"))
    try:
        cell = cls(in_features, hidden_features, **kwargs, rngs=rngs)  # type: ignore[call-arg]
    except Exception as error:
        if is_refusal(error) or user_failure(error) is not None:
            raise
        raise ValueError(f"cell {name!r} cannot be built: {exception_text(error)}") from error
    axes = jax.tree.leaves(cell.num_feature_axes)
    if not axes or not all(isinstance(count, int) for count in axes):
        raise ValueError(f"cell {name!r} has num_feature_axes={cell.num_feature_axes!r}; allowed: a whole number.")
    if learned_carry:
        assert isinstance(cell, Cell)
        learn_carry(cell)
    return cell


def split_names(text: str) -> list[str]:
    """Splits a comma-separated list of cell names, as a flag gives it; commas within parentheses belong to a name.

    Raises:
      ValueError: if there is no name, or one stands there twice.
    """
    names = [name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"cells={text!r} names {'a cell twice' if names else 'no cell'}; allowed: different names.")
    return names


def _parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Splits `name(a=1, b="x")` into the name and its literal keyword arguments."""
    name, parenthesis, rest = spec.partition("(")
    if not parenthesis:
        return spec, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise SyntaxError
        names = [keyword.arg for keyword in call.keywords]
        if None in names or len(set(names)) < len(names):  # None: `**`
            raise SyntaxError
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"cell {spec!r} cannot be read; allowed: name, or name(argument=value, ...) with literal values."
        ) from None


def _constructor_arguments(cls: type[nnx.RNNCellBase]) -> dict[str, Any]:
    """Returns the optional arguments of a class, with those that its `**kwargs` hands to its base classes.

    Each stands by its annotation, Any if it has none that can be read.
    """
    known: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        function = vars(base)["__init__"]
        try:
            hints = typing.get_type_hints(function)
        except Exception:  # names that a user's module imports for type checkers alone
            hints = {}
        parameters = inspect.signature(function).parameters.values()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        known |= {name: hints.get(name, Any) for name in named if name not in known}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {
        name: hint for name, hint in known.items() if name not in ("self", "in_features", "hidden_features", "rngs")
    }


def _check_literal(cell: str, argument: str, value: Any, hint: Any) -> None:
    """Raises ValueError if a value, as written behind a cell's name, is not of the plain types of its annotation."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, float):
        check_finite(argument, value)
    plain = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    others = [kind for kind in kinds if kind not in plain]
    # A function has no literal, and cannot be meant; of a type that is none of these, the cell is to judge.
    if not all(typing.get_origin(kind) is Callable or kind is jax.nn.initializers.Initializer for kind in others):
        return
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if not fits:
        allowed = ", ".join(plain[kind] for kind in kinds if kind in plain)
        raise ValueError(f"cell {cell!r}: {argument}={value!r} is of the wrong kind; allowed: {allowed}.")


def _find_class(path: str) -> type[nnx.RNNCellBase]:
    if path in _REGISTRY:
        return _REGISTRY[path].cls
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ValueError(f"unknown cell {path!r}; allowed: {', '.join(list_cells())}, or path.to.module:Class.")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a module of the user's own raises
        raise ValueError(
            f"cell {path!r}: module {module_name!r} cannot be imported ({exception_text(error)})."
        ) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nnx.RNNCellBase)):
        raise ValueError(f"cell {path!r}: module {module_name!r} has no flax.nnx.RNNCellBase {class_name!r}.")
    for name in ("initialize_carry", "__call__", "num_feature_axes"):
        if getattr(found, name) is getattr(nnx.RNNCellBase, name):
            raise ValueError(f"cell {path!r} has no `{name}` of its own; allowed: a class that is a whole cell.")
    return found
