"""The conformance kit: run it on a new cell first.

    print(rnn_jax.flow.check_cell("my.module:MyCell"))      (or: python -m experiments.check_cell --cell=MODULE:CLASS)

Every check is one function below, in the order of the report, whose docstring says what is allowed. It returns what it
measured, or raises `Failed` or `NotApplicable`; any other exception is a failure too, reported with the line of the
cell's code that raised it. A check is not run behind the failure of one that it relies on, so that one mistake gives
one or two failures. What the checks share: the cell and its inputs (check_subject.py), comparisons
(check_numbers.py), the report (check_report.py).

Numbers are compared in float64 (the cell is built with `param_dtype=float64`, or its parameters are cast), where
rounding is 1e-16 and a mistake cannot hide behind a tolerance. References are slow and plain: a Python loop over time,
one example after another, differences of function values. They share no code with what they are held against. A
relative difference is the largest difference over the largest entry, of each array by itself.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rnn_jax.cell import Cell, PointwiseCell, asks_for, carry_names, step
from rnn_jax.constant import keep_constants
from rnn_jax.errors import exception_text, first_line
from rnn_jax.flow.adjoint import adjoints
from rnn_jax.flow.check_numbers import (
    Arrays,
    abstract_cast,
    cast,
    counterpart,
    difference_text,
    dot,
    equal,
    example,
    finite,
    inexact,
    is_inexact,
    is_variable,
    jittered,
    largest,
    norm,
    normals,
    on_device,
    on_host,
    relative_difference,
    with_inexact,
)
from rnn_jax.flow.check_report import (
    CellReport,
    Check,
    Failed,
    NotApplicable,
    carry_text,
    shape_of,
    structure_text,
)
from rnn_jax.flow.check_subject import (
    BATCH,
    LoopByExample,
    Subject,
    abstract_outputs,
    at_step,
    cast_cell,
    jit_once,
    loop,
    one_step,
    outputs_and_gradients,
    scanned,
    stacked,
    trainable,
    two_loops,
    weights_for,
)
from rnn_jax.flow.profile import gradient_profile
from rnn_jax.layers import RNN
from rnn_jax.registry import make_cell
from rnn_jax.unroll import fused_obstacle, unroll

Array = jax.Array
Carry = Any
PyTree = Any

_TIME, _HALF, _LONG = 4, 2, 2000
_EXACT = 1e-12  # float64, the same sums in another order
_GRADIENT = 1e-8  # float64, the same gradient by another program; a saturated tanh costs digits
_DIFFERENCES = 1e-6  # float64, central differences
_ADJOINT = 1e-5  # their scale is a float32
_LOG10 = 1e-4  # of a profile, which is float32
_BFLOAT16 = 0.1  # bfloat16 has 8 bits
_SLACK = 1e-6  # by which rounding may carry a gate over its bound


def check_cell(
    cell_or_name: str | type[nnx.RNNCellBase] | nnx.RNNCellBase,
    *,
    in_features: int = 3,
    hidden_features: int = 5,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> CellReport:
    """Holds a cell against the contract that everything in this library relies on.

    It takes some 5 seconds, prints nothing, and does not depend on the global settings for x64 and promotion.

    Args:
      cell_or_name: a name as `rnn_jax.make_cell` takes; a class, built as `Class(in_features, hidden_features,
        rngs=...)`; or a built cell, which keeps its sizes and its dtype (for the checks in float64 and bfloat16 its
        parameters are cast, and the attributes `dtype` and `param_dtype` of it and its submodules follow).
      in_features: F. For a cell with several feature axes, the size of the last; the others have size 4.
      hidden_features: H.
      seed: of parameters and inputs.
      only: names of the checks to run; all by default.

    Raises:
      ValueError: if there is no such cell or check, or the cell cannot be built.
    """
    chosen = list(_CHECKS) if only is None else list(only)
    for name in chosen:
        if name not in _CHECKS:
            raise ValueError(f"check {name!r} is unknown; allowed: {', '.join(_CHECKS)}.")
    if isinstance(cell_or_name, str):
        builder = partial(make_cell, cell_or_name, in_features, hidden_features)
        subject = Subject(cell_or_name, builder, in_features, seed)
    elif isinstance(cell_or_name, type):
        builder = partial(cell_or_name, in_features, hidden_features)  # type: ignore[call-arg]
        subject = Subject(cell_or_name.__name__, builder, in_features, seed)
    else:
        in_features = getattr(cell_or_name, "in_features", in_features)
        subject = Subject(type(cell_or_name).__name__, None, in_features, seed, cell_or_name)
    with settings():
        return CellReport(subject.name, run_all(chosen, subject))


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Float64 at hand; promotion and NaN allowed: one check alone forbids promotion, and tells of it."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield


_CheckFunction = Callable[[Subject], str]
_CHECKS: dict[str, _CheckFunction] = {}
_RELIES_ON: dict[str, tuple[str, ...]] = {}


def check(name: str, *, relies_on: Sequence[str] = ()) -> Callable[[_CheckFunction], _CheckFunction]:
    """Decorator: adds a check to the end of the report; it is not run where one that it relies on has failed."""

    def enter(function: _CheckFunction) -> _CheckFunction:
        _CHECKS[name] = function
        _RELIES_ON[name] = tuple(relies_on)
        return function

    return enter


def run_all(names: Sequence[str], subject: Subject) -> tuple[Check, ...]:
    """Runs the checks of these names in this order, and writes their lines."""
    exemptions = exemptions_of(subject.cell)
    broken: dict[str, str] = {}  # a check that others cannot rely on, and the failure behind it
    causes: dict[str, str] = {}  # what failed, and the first check that said so
    lines = []
    for name in names:
        roots = [broken[other] for other in _RELIES_ON[name] if other in broken]
        if name in exemptions and name != "contract":
            line = Check(name, None, str(exemptions[name]), "exempt")
        elif roots:
            broken[name] = roots[0]
            line = Check(name, None, roots[0], "not run")
        else:
            line, cause = run(name, subject)
            if line.passed is False:
                broken[name] = first = causes.setdefault(cause, name)
                line = line if first == name else Check(name, False, first, "repeated")
        lines.append(line)
    return tuple(lines)


def run(name: str, subject: Subject) -> tuple[Check, str]:
    """Runs one check; returns its line, and the message of the exception behind a failure."""
    try:
        return Check(name, True, _CHECKS[name](subject)), ""
    except Failed as failure:
        return Check(name, False, str(failure)), first_line(failure.__cause__ or failure)
    except NotApplicable as reason:
        return Check(name, None, str(reason)), ""
    except Exception as error:  # whatever a cell raises is a finding about the cell
        return Check(name, False, exception_text(error)), first_line(error)


def exemptions_of(cell: Any) -> Mapping[str, str]:
    """Returns what the cell declares in `check_exemptions`, nothing if that is no mapping (`contract` fails then)."""
    exemptions = getattr(cell, "check_exemptions", {})
    return exemptions if isinstance(exemptions, Mapping) else {}


# The checks, from what a cell is to what it does.


@check("contract")
def contract(subject: Subject) -> str:
    """A `flax.nnx.RNNCellBase` with `num_feature_axes` (1 or more) and `initialize_carry(input_shape, rngs)`.

    The carry is a pytree of arrays, each beginning with the leading axes of the input, however many these are.
    `check_exemptions`, if there is one, names other checks of this file, each with a reason.
    """
    cell = subject.cell
    if not isinstance(cell, nnx.RNNCellBase):
        raise Failed(f"{type(cell).__name__} is no flax.nnx.RNNCellBase; allowed: a subclass of it.")
    exemptions = getattr(cell, "check_exemptions", {})
    if not isinstance(exemptions, Mapping):
        raise Failed(f"check_exemptions is a {type(exemptions).__name__}; allowed: a mapping of checks to reasons.")
    others = [name for name in _CHECKS if name != "contract"]
    if unknown := set(exemptions) - set(others):
        raise Failed(
            f"check_exemptions names {', '.join(map(repr, sorted(map(str, unknown))))}; allowed: {', '.join(others)}."
        )
    if empty := [name for name, reason in exemptions.items() if not (isinstance(reason, str) and reason.strip())]:
        raise Failed(f"check_exemptions gives no reason for {', '.join(empty)}; allowed: one sentence each.")
    axes = cell.num_feature_axes
    counts = jax.tree.leaves(axes)
    if not counts or any(not isinstance(count, int) or count < 0 for count in counts) or axes == 0:
        raise Failed(f"num_feature_axes={axes!r}; allowed: 1 or more, or a pytree of numbers from 0 on.")
    for batch in ((), (BATCH,), (2, BATCH)):
        input_shape = subject.input_shape(*batch)
        shapes: list[Any] = []

        def make(input_shape=input_shape, shapes=shapes):
            carry = cell.initialize_carry(input_shape, nnx.Rngs(subject.seed))
            shapes += [getattr(part, "shape", None) for part in jax.tree.leaves(carry)]
            return carry

        carry = jax.eval_shape(make)
        if not shapes or any(shape is None or shape[: len(batch)] != batch for shape in shapes):
            raise Failed(f"initialize_carry({input_shape}) makes arrays of {shapes}; allowed: [*batch, ...] each.")
    return f"nnx.RNNCellBase, num_feature_axes={axes}, carry {carry_text(cell, carry, 2)}"


@check("carry", relies_on=["contract"])
def carry_is_kept(subject: Subject) -> str:
    """A step gives back a carry of the same pytree structure, shapes and dtypes, and outputs `[*batch, ...]`.

    An output is an array or a pytree of arrays. The one output of a `rnn_jax.Cell` ends with `out_features`.
    """
    for dtype in (jnp.dtype(jnp.float64), subject.dtype):
        cell = subject.at(dtype)
        for batch in ((), (BATCH,), (2, BATCH)):
            carry = abstract_cast(subject.abstract_carry(cell, *batch), dtype)
            y = kept(cell, carry, subject.abstract_inputs(*batch, dtype=dtype), "")
            parts = jax.tree.leaves(y)
            if not parts or any(part.shape[: len(batch)] != batch for part in parts):
                raise Failed(
                    f"the output is {structure_text(y)}; allowed: arrays [*batch, ...], batch being {batch} here."
                )
            if isinstance(cell, Cell) and len(parts) == 1 and parts[0].shape[-1:] != (cell.out_features,):
                raise Failed(f"the output is {structure_text(y)}; allowed: out_features={cell.out_features} features.")
    return f"structure, shapes and dtypes kept; output {', '.join(shape_of(part, 2) for part in parts)}"


def kept(cell: nnx.RNNCellBase, carry: Carry, x: Array, when: str) -> Any:
    """Returns the abstract output of a step, or raises `Failed` if the carry does not come out as it went in."""
    new, y = jax.eval_shape(cell, carry, x)
    before, after = structure_text(carry), structure_text(new)
    if before != after:
        raise Failed(f"{when}the carry becomes {after} in a step; allowed: {before}, as before it.")
    return y


@check("construction")
def construction(subject: Subject) -> str:
    """The cell is built under `jax.jit` and `jax.vmap`, as the experiments build an ensemble of seeds.

    NumPy functions and `float(...)` cannot take the random numbers of a traced key; jax.numpy can.
    """
    build = subject.build
    if build is None:
        raise NotApplicable("the cell was given built")
    keys = jax.random.split(jax.random.key(subject.seed), 2)
    try:
        jax.eval_shape(jax.vmap(lambda key: build(rngs=nnx.Rngs(key))), keys)
    except Exception as error:
        text = f"under jax.vmap and jax.jit: {exception_text(error)}; allowed: jax.numpy on all that depends on `rngs`."
        raise Failed(text) from error
    return "built under jax.vmap and jax.jit"


@check("strict promotion", relies_on=["contract"])
def strict_promotion(subject: Subject) -> str:
    """A step and its gradient trace under `numpy_dtype_promotion="strict"` and `numpy_rank_promotion="raise"`.

    In the cell's own type and in float64, with none, one and two batch axes. A bare `z + b`, b with one axis, does not;
    nor does `jnp.zeros(shape)` without a dtype, which is float64 where x64 is on and takes the carry along.
    """
    for dtype in (subject.dtype, jnp.dtype(jnp.float64)):
        cell = subject.at(dtype)
        for batch in ((), (BATCH,), (2, BATCH)):
            carry = subject.abstract_carry(cell, *batch)
            x = subject.abstract_inputs(*batch, dtype=dtype)

            def loss(leaves, carry, x, cell=cell):
                outputs = with_inexact(cell, leaves)(carry, x)
                return sum(jnp.sum(jnp.real(part)).astype(jnp.float64) for part in inexact(outputs))

            with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
                try:
                    jax.eval_shape(jax.grad(loss), inexact(cell), carry, x)
                except Exception as error:
                    remedy = ""
                    if "numpy_rank_promotion" in str(error):
                        remedy = "; allowed: rnn_jax.add_bias(z, bias) for a bias, or a reshape in sight."
                    elif "TypePromotionError" in type(error).__name__:
                        remedy = "; allowed: flax.nnx.nn.dtypes.promote_dtype, or a dtype for each new array."
                    text = f"{dtype}, {len(batch)} batch axes: {exception_text(error)}{remedy}"
                    raise Failed(text) from error
    return f"no mixed types or ranks in {' and '.join(dict.fromkeys((str(subject.dtype), 'float64')))}"


@check("float64", relies_on=["carry"])
def float64(subject: Subject) -> str:
    """With float64 parameters and inputs, parameters, carry and output are float64, and so is all in between.

    That a step computes nothing in a narrower type is read off its jaxpr. Complex numbers are complex128.
    """
    drawn = subject.draw_in(jnp.float64)
    if drawn is not subject.cell:
        promised = jnp.dtype(getattr(drawn, "param_dtype", jnp.float64))
        for path, leaf in jax.tree_util.tree_leaves_with_path(drawn, is_leaf=is_variable):
            if is_inexact(leaf) and leaf.dtype != counterpart(leaf.dtype, promised):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise Failed(f"{name} is {leaf.dtype} with param_dtype={promised}; allowed: {promised}.")
    cell = subject.at(jnp.float64)
    carry, x = subject.abstract_carry(cell, BATCH), subject.abstract_inputs(BATCH, dtype=jnp.float64)
    for what, tree in (("initialize_carry makes", carry), ("a step puts out", jax.eval_shape(cell, carry, x))):
        for leaf in inexact(tree):
            if jnp.finfo(leaf.dtype).bits < 64:
                raise Failed(f"{what} {leaf.dtype} with float64 parameters; allowed: float64.")
    operations = list(equations(jax.make_jaxpr(cell)(carry, x).jaxpr))
    for equation in operations:
        for variable in equation.outvars:
            if is_inexact(variable.aval) and jnp.finfo(variable.aval.dtype).bits < 64:
                raise Failed(f"a step computes in {variable.aval.dtype} ({equation.primitive}); allowed: float64.")
    return f"parameters, carry, output, and all {len(operations)} operations of a step"


def equations(jaxpr: Any) -> Iterator[Any]:
    """Walks through the operations of a jaxpr and of those within it."""

    def within(value: Any) -> bool:
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    for equation in jaxpr.eqns:
        inner = [value for value in jax.tree.leaves(equation.params, is_leaf=within) if within(value)]
        if not inner:
            yield equation
        for value in inner:
            yield from equations(value if hasattr(value, "eqns") else value.jaxpr)


@check("parameters", relies_on=["carry"])
def parameters(subject: Subject) -> str:
    """Every array of the cell is an `nnx.Param` of floating-point type, and none is a random state.

    Every other array is a `rnn_jax.Constant`, which training leaves alone: a step of AdamW with weight decay, wrapped
    in `rnn_jax.keep_constants`, changes no bit of any array but the `nnx.Param`s. (A plain `nnx.Variable` is moved: by
    its gradient, or behind `jax.lax.stop_gradient` by the weight decay.)
    """
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(subject.cell, is_leaf=is_variable)
    ]
    for name, leaf in leaves:
        if isinstance(leaf, nnx.RngState):
            raise Failed(f"{name} is a random state ({type(leaf).__name__}); allowed: none.")
        if not is_variable(leaf):
            raise Failed(f"{name} is a bare array; allowed: nnx.Param, or rnn_jax.Constant.")
        if not is_inexact(leaf):
            raise Failed(f"{name} has dtype {leaf.dtype}, at which jax.grad stops; allowed: floating-point types.")
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    _, (gradients, _, _) = outputs_and_gradients(loop, cell, carry, xs, weights_for(subject, cell, carry, xs))
    # Weight decay leaves a zero where it is, whatever kind of variable holds it.
    before = with_inexact(cell, [leaf + (leaf == 0) for leaf in inexact(on_host(cell))])
    after = on_host(adamw_step(before, with_inexact(cell, gradients)))
    for (name, leaf), gradient, old, new in zip(leaves, gradients, inexact(before), inexact(after), strict=True):
        if not isinstance(leaf, nnx.Param) and not equal(old, new):
            what = "the weight decay of AdamW moves" if equal(gradient, 0 * gradient) else "a gradient reaches"
            raise Failed(f"{what} {name}; allowed: nnx.Param for what is trained, rnn_jax.Constant for what is not.")
    return f"{sum(leaf.size for _, leaf in leaves)} numbers in {len(leaves)} arrays, no random state"


@jit_once
def adamw_step(cell: nnx.RNNCellBase, gradients: nnx.RNNCellBase) -> nnx.RNNCellBase:
    """Returns the cell after a step of AdamW with weight decay, as `rnn_jax.training` wraps it."""
    optimizer = keep_constants(optax.adamw(1e-2, weight_decay=0.5))
    updates, _ = optimizer.update(gradients, optimizer.init(cell), cell)
    return optax.apply_updates(cell, updates)


@check("usage", relies_on=["carry"])
def usage(subject: Subject) -> str:
    """A step changes the carry, and every `nnx.Param` changes outputs, new carry or initial carry of 4 steps.

    All parameters are moved at random first, then one more at a time, by amounts of order 0.1, 1 and 10.
    """
    cell = subject.perturbed()
    xs = subject.inputs(BATCH, _TIME)
    carries = subject.initial_carry(cell, BATCH), subject.carry_after_steps(cell)
    weights = weights_for(subject, cell, carries[0], xs)
    steps = [on_host(one_step(cell, carry, at_step(xs, 0))[0]) for carry in carries]
    # A counter may go on beside a state that is thrown away.
    if all(equal(inexact(new) or new, inexact(old) or old) for new, old in zip(steps, carries, strict=True)):
        raise Failed("the carry is never changed in a step; allowed: a step that returns the new carry.")

    def effects(cell: nnx.RNNCellBase) -> list[PyTree]:
        initial = subject.initial_carry(cell, BATCH)
        runs = [outputs_and_gradients(loop, cell, carry, xs, weights)[0] for carry in carries]
        return [initial, runs]

    want, leaves = effects(cell), inexact(on_host(cell))
    rng = np.random.default_rng([subject.seed, 17])
    paths = jax.tree_util.tree_leaves_with_path(cell, is_leaf=is_variable)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in paths if is_inexact(leaf)]
    unused = []
    for k, (name, moves) in enumerate(zip(names, trainable(cell), strict=True)):
        if not moves:
            continue
        (noise,) = normals([leaves[k]], rng)
        moved = (with_inexact(cell, [*leaves[:k], leaves[k] + size * noise, *leaves[k + 1 :]]) for size in (0.1, 1, 10))
        if all(equal(effects(on_device(other)), want) for other in moved):
            unused.append(name)
    if unused:
        raise Failed(f"no output, carry or initial carry depends on {', '.join(unused)}; allowed: parameters in use.")
    return f"a step changes the carry; each of {sum(trainable(cell))} parameters changes what the cell does"


@check("batch axes", relies_on=["float64"])
def batch_axes(subject: Subject) -> str:
    """One and two leading axes give what each example gives alone: relative difference at most 1e-12."""
    cell = subject.at(jnp.float64)
    carries = [subject.carry_after_steps(cell, draw=draw) for draw in range(2)]
    carry = jax.tree.map(lambda *parts: np.stack(parts), *carries)
    two_axes, one_axis, want = on_host(with_batch_axes(cell, carry, subject.inputs(2, BATCH)))
    want_two = jax.tree.map(lambda part: part.reshape(2, BATCH, *part.shape[1:]), want)
    differences = [
        relative_difference(one_axis, want, _EXACT, "one batch axis against example by example"),
        relative_difference(two_axes, want_two, _EXACT, "two batch axes against example by example"),
    ]
    return difference_text(differences, _EXACT, "none, one and two")


@jit_once
def with_batch_axes(cell: nnx.RNNCellBase, carry: Carry, x: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """Returns a step with two batch axes, with both as one axis, and of one example after another."""
    flat = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), (carry, x))
    alone = [cell(*jax.tree.map(lambda part, k=k: part[k], flat)) for k in range(2 * BATCH)]
    return cell(carry, x), cell(*flat), stacked(alone)


@check("jit and grad", relies_on=["float64", "parameters"])
def jit_and_grad(subject: Subject) -> str:
    """`jax.jit` and `jax.grad` take the cell as an argument and closed over: relative difference at most 1e-12."""
    cell = subject.at(jnp.float64)
    carry, x = on_device((subject.carry_after_steps(cell), subject.inputs(BATCH)))
    want = cell(carry, x)
    weights = normals(inexact(want), np.random.default_rng(subject.seed))

    def loss(cell, x):
        outputs = cell(carry, x)
        return dot(weights, inexact(outputs)), outputs

    (_, to_x), passed = jit_once(jax.grad(loss, argnums=(0, 1), has_aux=True))(cell, x)
    to_x_closed, closed = jit_once(jax.grad(lambda x: loss(cell, x), has_aux=True))(x)
    differences = [
        relative_difference(passed, want, _EXACT, "jit, cell passed"),
        relative_difference(closed, want, _EXACT, "jit, cell closed over"),
        relative_difference(to_x_closed, to_x, _EXACT, "grad, cell closed over"),
    ]
    return difference_text(differences, _EXACT, "cell passed and closed over")


@check("vmap", relies_on=["batch axes"])
def vmap(subject: Subject) -> str:
    """`jax.vmap` over examples, cell passed and closed over, and over an ensemble of cells: at most 1e-12."""
    cell = subject.at(jnp.float64)
    carry, x = on_device((subject.carry_after_steps(cell), subject.inputs(BATCH)))
    other = on_device(with_inexact(cell, [2.0 * leaf for leaf in inexact(on_host(cell))]))
    want, of_other = on_host((cell(carry, x), other(carry, x)))

    def step(cell, carry, x):
        return cell(carry, x)

    @jit_once
    def mapped(passed, other, carry, x):
        return (
            jax.vmap(lambda c, x: cell(c, x))(carry, x),
            jax.vmap(step, (None, 0, 0))(passed, carry, x),
            jax.vmap(step, (0, None, None))(stacked([passed, other]), carry, x),
        )

    closed, passed, together = mapped(cell, other, carry, x)
    pair = jax.tree.map(lambda *parts: np.stack(parts), want, of_other)
    differences = [
        relative_difference(closed, want, _EXACT, "over examples, cell closed over"),
        relative_difference(passed, want, _EXACT, "over examples, cell passed"),
        relative_difference(together, pair, _EXACT, "over an ensemble of cells"),
    ]
    return difference_text(differences, _EXACT, "over examples and over an ensemble")


@check("scan", relies_on=["float64"])
def scan(subject: Subject) -> str:
    """`jax.lax.scan` over the cell gives what the Python loop gives: relative difference at most 1e-12."""
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    last, ys = on_host(jit_once(partial(jax.lax.scan, lambda c, x: cell(c, x)))(carry, swapped(xs)))
    want, _ = outputs_and_gradients(loop, cell, carry, xs, weights_for(subject, cell, carry, xs))
    difference = relative_difference((last, swapped(ys)), want, _EXACT, "scan against the Python loop")
    return difference_text([difference], _EXACT, f"{_TIME} steps")


def swapped(tree: PyTree) -> PyTree:
    """Returns arrays `[batch, time, ...]` time-major, and the reverse."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


@check("bfloat16", relies_on=["carry"])
def bfloat16(subject: Subject) -> str:
    """With parameters cast to bfloat16 the carry keeps its dtype, and outputs and gradients are finite.

    Outputs of 4 steps: relative difference at most 0.1 from what the same parameters give in float64. A
    `rnn_jax.Cell` is also run with `dtype=bfloat16` and float32 parameters, where its carry stays float32.
    """
    narrow = subject.at(jnp.bfloat16)
    carry = subject.initial_carry(narrow, BATCH, dtype=jnp.bfloat16)
    if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves((narrow, carry))):
        raise NotApplicable("the cell computes with complex numbers, which have no bfloat16")
    xs = subject.inputs(BATCH, _TIME, dtype=jnp.bfloat16)
    kept(narrow, carry, at_step(xs, 0), "with bfloat16 parameters ")
    wide = with_inexact(subject.at(jnp.float64), inexact(cast(narrow, jnp.float64)))
    wide_carry, wide_xs = cast((carry, xs), jnp.float64)
    weights = weights_for(subject, wide, wide_carry, wide_xs)
    outputs, gradients = outputs_and_gradients(scanned, narrow, carry, xs, cast(weights, jnp.bfloat16))
    finite(outputs, "outputs in bfloat16")
    finite(gradients, "gradients in bfloat16")
    want, _ = outputs_and_gradients(scanned, wide, wide_carry, wide_xs, weights)
    difference = relative_difference(cast(outputs, jnp.float64), want, _BFLOAT16, "bfloat16 against float64")
    detail = difference_text([difference], _BFLOAT16, "parameters cast, against float64")
    if isinstance(subject.cell, Cell):
        mixed = cast_cell(subject.cell, jnp.float32)
        setattr(mixed, "dtype", jnp.bfloat16)  # noqa: B010  (its type does not tell that it is a Cell)
        carry = abstract_cast(subject.abstract_carry(mixed, BATCH), jnp.float32)
        kept(
            mixed,
            carry,
            subject.abstract_inputs(BATCH, dtype=jnp.float32),
            "with dtype=bfloat16 and float32 parameters ",
        )
        detail += "; carry float32 with dtype=bfloat16"
    return detail


@check("gradients", relies_on=["float64"])
def gradients(subject: Subject) -> str:
    """`jax.grad` through 4 steps (Python loop, float64) agrees with central differences to 1e-6.

    At each of 5 random points (parameters jittered, another carry, other inputs), along 3 random directions of norm 1
    in each of three spaces: parameters (every `nnx.Param`), initial carry, inputs. The step is 1e-5; the difference
    counts in relation to the norm of the gradient, unless rounding of the loss explains it. One of the 5 points may
    disagree: a kink (relu) can stand within the step, though with random numbers that happens once in thousands of
    points. A surrogate gradient (a step function trained as if it were a sigmoid) fails here, unless the cell declares
    `check_exemptions = {"gradients": "straight-through estimator"}`.
    """
    cell = subject.at(jnp.float64)
    moving = trainable(cell)
    rng = np.random.default_rng([subject.seed, 11])
    agreeing: list[float] = []
    disagreeing: list[str] = []
    for point in range(5):
        noise = [moves * n for moves, n in zip(moving, normals(inexact(cell), rng), strict=True)]
        carry, xs = subject.carry_after_steps(cell, draw=point), subject.inputs(BATCH, _TIME, draw=point)
        at = (jittered(cell, noise), carry, xs)
        weights = weights_for(subject, *at)
        error, text = max(worst_slope(at, space, weights, moving, rng) for space in range(3) if inexact(at[space]))
        if error <= _DIFFERENCES:
            agreeing.append(error)
        else:
            disagreeing.append(text)
    if len(disagreeing) > 1:
        raise Failed(f"{disagreeing[0]}; allowed: 1e-6 apart (so at {len(disagreeing)} of 5 points).")
    return difference_text(
        agreeing, _DIFFERENCES, "central differences" + ", 1 of 5 points on a kink" * len(disagreeing)
    )


def worst_slope(
    at: tuple[PyTree, PyTree, PyTree], space: int, weights: Arrays, moving: list[bool], rng: np.random.Generator
) -> tuple[float, str]:
    """Compares slopes of the loss at one point, along 3 directions in one of (cell, carry, inputs).

    Returns:
      The largest error, inf for NaN, and a sentence about it.
    """
    step = 1e-5
    outputs, slopes = outputs_and_gradients(loop, *at, weights)
    terms = [np.sum(np.abs(w * y)) for w, y in zip(weights, inexact(outputs), strict=True)]
    rounding = 10 * np.finfo(np.float64).eps * sum(terms) / step
    leaves = inexact(on_host(at[space]))
    worst = (0.0, "")
    for _ in range(3):
        direction = normals(leaves, rng)
        if space == 0:
            direction = [moves * d for moves, d in zip(moving, direction, strict=True)]
        direction = [d / (norm(direction) or 1.0) for d in direction]
        losses = []
        for signed in (step, -step):
            moved = [x + signed * d for x, d in zip(leaves, direction, strict=True)]
            there = (*at[:space], with_inexact(at[space], moved), *at[space + 1 :])
            losses.append(float(dot(weights, inexact(outputs_and_gradients(loop, *there, weights)[0]))))
        slope, quotient = float(dot(slopes[space], direction)), (losses[0] - losses[1]) / (2 * step)
        difference = abs(slope - quotient)
        error = difference / max(norm(slopes[space]), abs(quotient)) if difference else 0.0
        if error > _DIFFERENCES and difference <= rounding:
            error = 0.0
        where = ("parameters", "initial carry", "inputs")[space]
        text = f"{where}: a slope of {slope:.7g} by jax.grad, of {quotient:.7g} by central differences"
        worst = max(worst, (np.inf if np.isnan(error) else error, text))
    return worst


@check("unroll", relies_on=["batch axes"])
def unroll_is_the_loop(subject: Subject) -> str:
    """`rnn_jax.unroll` gives the outputs (to 1e-12) and gradients (to 1e-8) of the plain Python loop, in float64.

    Once forward, and once in reverse with lengths and resets against one example after another. So it holds for
    whatever faster way `unroll` has with this kind of cell.
    """
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    args = (cell, carry, xs, weights_for(subject, cell, carry, xs))
    lengths, resets = (_TIME, _HALF, 1), ((1, _HALF), (), (0,))
    masks = np.array([[t in steps for t in range(_TIME)] for steps in resets])
    pairs = {
        "forward": (outputs_and_gradients(scanned, *args), outputs_and_gradients(loop, *args)),
        "reverse, lengths, resets": (
            outputs_and_gradients(scanned, *args, np.asarray(lengths), masks, reverse=True),
            outputs_and_gradients(LoopByExample(lengths, resets), *args),
        ),
    }
    differences = []
    for how, (got, want) in pairs.items():
        differences.append(relative_difference(got[0], want[0], _EXACT, f"{how}: outputs"))
        for k, of in enumerate(("parameters", "initial carry", "inputs")):
            differences.append(relative_difference(got[1][k], want[1][k], _GRADIENT, f"{how}: gradient to the {of}"))
    obstacle = fused_obstacle(cell, xs, carry)
    path = "fast path" if obstacle is None else f"plain scan, as {obstacle}"
    return difference_text(differences, _GRADIENT, f"outputs and gradients against the Python loop ({path})")


@check("context", relies_on=["unroll"])
def context_is_the_same_at_every_step(subject: Subject) -> str:
    """A cell that asks for a context: outputs of `rnn_jax.unroll` to 1e-12, and gradients, that of the context too, to
    1e-8, of a Python loop that hands the context to every step. In float64.
    """
    if not subject.asks_for_context:
        raise NotApplicable("the cell asks for no context")
    cell = subject.at(jnp.float64)
    carry, (xs, contexts) = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    operands = (cell, carry, xs, at_step(contexts, 0))
    shapes = abstract_outputs(cell, carry, (xs, contexts))
    weights = normals(inexact(shapes), np.random.default_rng([subject.seed, 19]))

    def python_loop(cell, carry, xs, context):
        every_step = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (BATCH, _TIME, *x.shape[1:])), context)
        return loop(cell, carry, (xs, every_step))

    def unrolled(cell, carry, xs, context):
        return unroll(cell.cell, xs, carry, context=context)

    return same_with_gradients(unrolled, python_loop, operands, weights, "with a context, against the Python loop")


@check("key", relies_on=["unroll"])
def key_of_a_step(subject: Subject) -> str:
    """A cell that asks for a key: step t of `rnn_jax.unroll` draws from `fold_in(key, t)`; another key, other numbers.

    Outputs to 1e-12, and gradients to 1e-8, of a Python loop; a sequence draws the same numbers whether it is padded or
    not, to 1e-12. In float64. (All other checks run the cell without a key, deterministic.)
    """
    inner = subject.cell.cell if subject.asks_for_context else subject.cell
    if not asks_for(inner, "key"):
        raise NotApplicable("the cell asks for no key")
    if subject.asks_for_context:
        raise NotApplicable("the cell asks for a context, too")
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    weights = weights_for(subject, cell, carry, xs)
    keys = jax.random.split(jax.random.key(subject.seed))

    def python_loop(cell, carry, xs, key=keys[0]):
        ys = []
        for t in range(_TIME):
            carry, y = step(cell, carry, at_step(xs, t), key=jax.random.fold_in(key, t))
            ys.append(y)
        return carry, stacked(ys, axis=1)

    def unrolled(cell, carry, xs, key=keys[0], **options):
        return unroll(cell, xs, carry, key=key, **options)

    text = same_with_gradients(unrolled, python_loop, (cell, carry, xs), weights, "with a key, against the Python loop")
    run = jit_once(unrolled)
    if equal(run(cell, carry, xs, keys[0]), run(cell, carry, xs, keys[1])):
        raise Failed("another key gives the same outputs; allowed: a cell that uses its key, or does not ask for one.")
    half = slice(_HALF)
    padded = on_host(run(cell, carry, xs, keys[0], lengths=np.full(BATCH, _HALF)))
    alone = run(cell, carry, at_step(xs, half), keys[0])
    relative_difference((padded[0], at_step(padded[1], half)), alone, _EXACT, "padded against not padded")
    return text


def same_with_gradients(
    got: Callable[..., Any], want: Callable[..., Any], operands: tuple[PyTree, ...], weights: Arrays, what: str
) -> str:
    """Compares outputs and gradients of two functions of the same operands; returns the detail of the check."""

    def run(function: Callable[..., Any]) -> tuple[PyTree, list[Arrays]]:
        def loss(leaves):
            trees = [with_inexact(tree, part) for tree, part in zip(operands, leaves, strict=True)]
            outputs = function(*trees)
            return dot(weights, inexact(outputs)), outputs

        leaves = [inexact(tree) for tree in operands]
        (_, outputs), gradients = jit_once(jax.value_and_grad(loss, has_aux=True))(leaves)
        return on_host((outputs, gradients))

    (outputs, gradients), (want_outputs, want_gradients) = run(got), run(want)
    differences = [
        relative_difference(outputs, want_outputs, _EXACT, f"{what}: outputs"),
        relative_difference(gradients, want_gradients, _GRADIENT, f"{what}: gradients"),
    ]
    return difference_text(differences, _GRADIENT, what)


@check("adjoints", relies_on=["unroll", "parameters"])
def adjoints_are_brute_force(subject: Subject) -> str:
    """`flow.gradient_profile` and `flow.adjoints` show the gradient to zeros added to every carry of a Python loop.

    The profile (whole carry and parts, float32) to 1e-4 in log10; the adjoints to a relative difference of 1e-5; the
    parameter gradients that come with the profile to 1e-8. In float64.
    """
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    weights = weights_for(subject, cell, carry, xs)

    @jit_once
    @jax.grad
    def brute_force(zeros):
        h, ys = carry, []
        for t in range(_TIME):
            h, y = cell(h, at_step(xs, t))
            h = with_inexact(h, [part + zero[:, t] for part, zero in zip(inexact(h), zeros, strict=True)])
            ys.append(y)
        return dot(weights, inexact((h, stacked(ys, axis=1))))

    want = on_host(brute_force([np.zeros((BATCH, _TIME, *part.shape[1:]), part.dtype) for part in inexact(carry)]))
    squares = [np.sum(np.abs(part) ** 2, axis=(0, *range(2, part.ndim))) for part in want]
    names = [name for name, x in zip(carry_names(cell, carry), jax.tree.leaves(carry), strict=True) if is_inexact(x)]
    expected = {"rnn": sum(squares)}
    if len(jax.tree.leaves(carry)) > 1:
        expected |= {f"rnn/{name}": square for name, square in zip(names, squares, strict=True)}

    def loss(model, carry, xs):
        return dot(weights, inexact(model(xs, initial_carry=carry)))

    profile = jit_once(partial(gradient_profile, loss))(RNN(cell, return_carry=True), carry, xs)
    off = 0.0
    for name, square in expected.items():
        got = np.asarray(profile.log10_norm[name])
        with np.errstate(divide="ignore", invalid="ignore"):
            log10 = 0.5 * np.log10(square / BATCH)
            off = float(np.max([off, *np.where(got == log10, 0.0, np.abs(got - log10))]))
    if not off <= _LOG10:
        raise Failed(f"gradient_profile is {off:.1g} off in log10; allowed: {_LOG10:g}.")
    _, (to_cell, _, _) = outputs_and_gradients(loop, cell, carry, xs, weights)
    relative_difference(inexact(profile.grads), to_cell, _GRADIENT, "parameter gradients of gradient_profile")

    count = len(inexact(carry))
    carry_cotangent = with_inexact(jax.tree.map(np.zeros_like, carry), weights[:count])
    ys = abstract_outputs(cell, carry, xs)[1]
    ys_cotangent = with_inexact(jax.tree.map(lambda y: np.zeros(y.shape, y.dtype), ys), weights[count:])
    measured = on_host(jit_once(adjoints)(cell, xs, ys_cotangent, carry, carry_cotangent=carry_cotangent))
    scale = 10.0 ** np.asarray(measured.log10_scale, np.float64)
    vectors = [x * scale.reshape(scale.shape + (1,) * (x.ndim - 2)) for x in inexact(measured.direction)]
    relative_difference(vectors, want, _ADJOINT, "flow.adjoints")
    return f"profile of {', '.join(expected)}: {off:.1g} off in log10, allowed {_LOG10:g}"


@check("padding", relies_on=["unroll"])
def padding_is_inert(subject: Subject) -> str:
    """With `lengths`, NaN in the padding changes no bit of outputs, carry or gradients.

    Outputs and input gradients at padded steps are exactly zero; a sequence of length 0 keeps its carry; a shorter one
    has what it has when run alone, to 1e-12. In float64.
    """
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    weights = weights_for(subject, cell, carry, xs)
    lengths = np.array([_TIME, _HALF, 0])
    padded = np.arange(_TIME) >= lengths[:, None]
    no_resets = np.zeros((BATCH, _TIME), bool)
    results = []
    for filling in (np.nan, 0.0):
        filled = jax.tree.map(lambda x, filling=filling: where_batched(padded, filling, x), xs)
        results.append(outputs_and_gradients(scanned, cell, carry, filled, weights, lengths, no_resets))
    finite(results[0], "NaN in the padding gives")
    relative_difference(results[0], results[1], 0.0, "NaN against zeros in the padding")
    (last, ys), (_, _, to_xs) = results[0]
    for what, arrays in (("outputs", inexact(ys)), ("input gradients", to_xs)):
        if largest([array[padded] for array in arrays]) != 0:
            raise Failed(f"{what} at padded steps are not zero; allowed: exactly zero.")
    relative_difference(example(last, 2), example(carry, 2), 0.0, "carry of a sequence of length 0")
    alone, ys_alone = carry, []
    for t in range(_HALF):
        alone, y = on_host(one_step(cell, alone, at_step(xs, t)))
        ys_alone.append(example(y, 1))
    alone = (example(alone, 1), jax.tree.map(lambda *parts: np.stack(parts, 1), *ys_alone))
    got = (example(last, 1), at_step(example(ys, 1), slice(_HALF)))
    return difference_text(
        [relative_difference(got, alone, _EXACT, "a padded sequence against the same alone")],
        _EXACT,
        "against no padding",
    )


def where_batched(condition: np.ndarray, value: float, x: np.ndarray) -> np.ndarray:
    """Returns x with a value where the condition `[batch, time]` holds."""
    return np.where(condition.reshape(condition.shape + (1,) * (x.ndim - 2)), value, x)


@check("resets", relies_on=["unroll"])
def resets_part_sequences(subject: Subject) -> str:
    """A reset gives the outputs (to 1e-12) and gradients (to 1e-8) of two sequences run apart, in float64.

    The gradient from outputs behind the reset to inputs before it, and to the initial carry, is exactly zero.
    """
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    weights, count = weights_for(subject, cell, carry, xs), len(inexact(carry))
    resets = np.tile(np.arange(_TIME) == _HALF, (BATCH, 1))
    # With full lengths, so that it is the program that `padding` compiles.
    once = partial(outputs_and_gradients, scanned, cell, carry, xs)
    (last, ys), got = once(weights, np.full(BATCH, _TIME), resets)
    (want_last, want_ys), want = outputs_and_gradients(two_loops, cell, carry, xs, weights)
    differences = [relative_difference((last, ys), (want_last, want_ys), _EXACT, "outputs and carry")]
    for k, of in enumerate(("parameters", "initial carry", "inputs")):
        differences.append(relative_difference(got[k], want[k], _GRADIENT, f"gradient to the {of}"))
    behind = [np.concatenate([0 * part[:, :_HALF], part[:, _HALF:]], 1) for part in weights[count:]]
    _, (_, to_carry, to_xs) = once([*weights[:count], *behind], np.full(BATCH, _TIME), resets)
    if largest([to_carry, at_step(to_xs, slice(_HALF))]) != 0:
        raise Failed("outputs behind a reset send a gradient before it; allowed: exactly zero.")
    return difference_text(differences, _GRADIENT, "against two sequences run apart")


@check("flax.nnx.RNN", relies_on=["unroll"])
def flax_rnn(subject: Subject) -> str:
    """`flax.nnx.RNN` runs the cell, with the outputs and the final carry of `rnn_jax.RNN` to 1e-12, in float64."""
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, _TIME)
    if len(jax.tree.leaves(xs)) > 1:
        raise NotApplicable("the cell reads a pytree or asks for a context, which flax.nnx.RNN does not give")

    @jit_once
    def both(ours, theirs, xs, carry):
        return ours(xs, initial_carry=carry), theirs(xs, initial_carry=carry)

    got, want = both(RNN(cell, return_carry=True), nnx.RNN(cell, return_carry=True), xs, carry)
    return difference_text(
        [relative_difference(got, want, _EXACT, "rnn_jax.RNN against flax.nnx.RNN")], _EXACT, "outputs and carry"
    )


@check("extreme inputs", relies_on=["carry"])
def extreme_inputs(subject: Subject) -> str:
    """4 steps of zeros, of 1e4, of -1e4 and of both signs give finite outputs and gradients, in the cell's own type.

    A linear or relu cell may grow: in 4 steps it stays far below the largest float32, 3e38.
    """
    cell = subject.cell
    carry = subject.initial_carry(cell, BATCH, dtype=subject.dtype)
    xs = subject.inputs(BATCH, _TIME, dtype=subject.dtype)
    weights = weights_for(subject, cell, carry, xs)
    seen = 0.0
    kinds = {"zeros": np.zeros_like, "1e4": lambda x: 0 * x + 1e4, "-1e4": lambda x: 0 * x - 1e4}
    kinds["+-1e4"] = lambda x: np.sign(x) * 1e4
    for what, extreme in kinds.items():  # an interval (an array without feature axes) stays as it is
        inputs = jax.tree.map(lambda x, extreme=extreme: extreme(x).astype(x.dtype) if x.ndim > 2 else x, xs)
        outputs, gradients = outputs_and_gradients(scanned, cell, carry, inputs, weights)
        finite(outputs, f"outputs for inputs of {what}")
        finite(gradients, f"gradients for inputs of {what}")
        seen = max(seen, largest(inexact(outputs)))
    return f"{', '.join(kinds)}: finite in {subject.dtype}, gradients too; largest output {seen:.2g}"


@check("long run", relies_on=["carry", "parameters"])
def long_run(subject: Subject) -> str:
    """2000 steps with standard normal inputs give neither NaN nor inf, nor do their gradients; in the cell's own type.

    Growth is no mistake: numbers that have grown beyond the square root of the largest one may leave the range of the
    type at the next step (gradients are then not looked at), and gradients may where the adjoints grow so far.
    """
    cell, limit = subject.cell, float(jnp.finfo(subject.dtype).max) ** 0.5
    carry = subject.initial_carry(cell, 1, dtype=subject.dtype)
    xs = subject.inputs(1, _LONG, dtype=subject.dtype)

    def step(carry, x):
        new, y = cell(carry, x)
        return new, jnp.max(jnp.stack([jnp.max(jnp.abs(part)).astype(jnp.float64) for part in inexact((new, y))]))

    sizes_T = np.asarray(jit_once(partial(jax.lax.scan, step))(carry, swapped(xs))[1])
    if not np.all(np.isfinite(sizes_T)):
        gone = int(np.argmin(np.isfinite(sizes_T)))
        before = sizes_T[gone - 1] if gone else 0.0
        if before < limit:
            raise Failed(f"{sizes_T[gone]} at step {gone + 1}, behind numbers of {before:.1g}; allowed: finite ones.")
        return f"the state grows beyond {subject.dtype} by step {gone + 1}, which is allowed; no NaN before it"

    weights = normals(inexact(abstract_outputs(cell, carry, xs)), np.random.default_rng(subject.seed))

    def loss(model, carry, xs):
        return dot(weights, inexact(model(xs, initial_carry=carry)))

    profile = jit_once(partial(gradient_profile, loss))(RNN(cell, return_carry=True), carry, xs)
    log10_T = np.asarray(profile.log10_norm["rnn"])
    if np.any(np.isnan(log10_T)):
        raise Failed("the gradient profile holds NaN; allowed: numbers, and -inf for an exact zero.")
    if np.max(log10_T) > np.log10(limit):
        return f"outputs finite; the adjoints grow to 1e{np.max(log10_T):.0f}, which is allowed"
    finite(profile.grads, f"gradients of {_LONG} steps")
    return f"{_LONG} steps: finite in {subject.dtype}, gradients too; largest number {np.max(sizes_T):.2g}"


@check("gates", relies_on=["carry"])
def gates(subject: Subject) -> str:
    """`cell.gates(carry, x)` gives finite arrays `[*batch, ...]` by name, each within its `gate_ranges` (to 1e-6).

    For common inputs in float64, and for inputs of +-1e4 in the cell's own type. Every name of `gate_ranges` is a gate.
    In a `rnn_jax.Cell` the step itself calls `gates` (in an `PointwiseCell`: `activate`): halving what that returns for
    one gate must change the step, or an instrument would look at something that the step does not do. A gate that only
    another gate is computed from (the r of a GRU) may change nothing, if that is so in the jaxpr of `gates`.
    """
    if not hasattr(subject.cell, "gates"):
        raise NotApplicable("the cell has no method `gates`")
    if isinstance(subject.cell, Cell) and type(subject.cell).gates is Cell.gates:
        raise Failed(
            f"{type(subject.cell).__name__} is a rnn_jax.Cell without `gates(carry, x)`; allowed: that method, "
            "which returns gate values by name, or a subclass of flax.nnx.RNNCellBase."
        )
    smallest: dict[str, float] = {}
    highest: dict[str, float] = {}
    double, own = subject.at(jnp.float64), subject.cell
    carries = [subject.carry_after_steps(double, draw=draw) for draw in range(2)]
    large = jax.tree.map(lambda x: x * 1e4, subject.inputs(BATCH, dtype=subject.dtype))
    steps = {  # by batch axes
        (): (double, jax.tree.map(lambda part: part[0], carries[0]), subject.inputs()),
        (2, BATCH): (double, jax.tree.map(lambda *parts: np.stack(parts), *carries), subject.inputs(2, BATCH)),
        (BATCH,): (own, subject.carry_after_steps(own, dtype=subject.dtype), large),
    }
    ranges = getattr(own, "gate_ranges", {})
    for batch, values in zip(steps, on_host(gate_values(list(steps.values())))):
        if not values:
            raise NotApplicable("the cell names no gates")
        if unknown := set(ranges) - set(values):
            raise Failed(f"gate_ranges names {', '.join(sorted(unknown))}; allowed: gates, {', '.join(values)}.")
        for name, value in values.items():
            if value.shape[: len(batch)] != batch:
                raise Failed(f"gate {name} has shape {value.shape}; allowed: [*batch, ...], batch being {batch}.")
            finite(value, f"gate {name}")
            (low, high), (least, most) = (np.min(value), np.max(value)), ranges.get(name, (-np.inf, np.inf))
            if low < least - _SLACK or high > most + _SLACK:
                raise Failed(f"gate {name} is {low:.7g} to {high:.7g}; allowed: {least:g} to {most:g}.")
            smallest[name] = min(low, smallest.get(name, np.inf))
            highest[name] = max(high, highest.get(name, -np.inf))
    detail = ", ".join(f"{name} {smallest[name]:.2g} to {highest[name]:.2g}" for name in smallest)
    if not isinstance(subject.cell, Cell):
        return detail

    cell = subject.perturbed()
    carry, x = subject.carry_after_steps(cell), subject.inputs(BATCH)
    carry, x = on_device((carry, x))
    want = cell(carry, x)
    unchanged = [name for name in smallest if equal(halved_everywhere(cell, name)(carry, x), want)]
    if unused := [name for name in unchanged if not feeds_another_gate(cell, carry, x, name)]:
        method = "activate" if isinstance(cell, PointwiseCell) else "gates"
        raise Failed(
            f"halving what `{method}` returns for {', '.join(unused)} changes nothing in a step; "
            f"allowed: a step that calls `{method}` for its gates."
        )
    return f"{detail}; the step uses them"


@jit_once
def gate_values(steps: Sequence[tuple[Any, Carry, PyTree]]) -> list[dict[str, Array]]:
    """Returns the gates of some steps (cell, carry, x)."""
    return [cell.gates(carry, x) for cell, carry, x in steps]


def halved_everywhere(cell: nnx.RNNCellBase, name: str) -> nnx.RNNCellBase:
    """Returns the cell with one gate halved, also in the cells within it that a wrapper forwards to."""
    halved = jax.tree.map(lambda leaf: leaf, cell)
    for _, module in nnx.iter_modules(halved):
        method = "activate" if isinstance(module, PointwiseCell) else "gates"
        if isinstance(module, nnx.RNNCellBase) and hasattr(module, method):
            setattr(module, method, partial(half_of_gate, getattr(module, method), name))
    return halved


def half_of_gate(method: Callable[..., dict[str, Array]], name: str, *args: Any) -> dict[str, Array]:
    return {key: 0.5 * value if key == name else value for key, value in method(*args).items()}


def feeds_another_gate(cell: Any, carry: Carry, x: Array, name: str) -> bool:
    """Whether the variable that `gates` returns for a gate is read by an equation of its jaxpr."""
    jaxpr, outputs = jax.make_jaxpr(lambda: cell.gates(carry, x), return_shape=True)()
    return is_read(jaxpr.jaxpr, list(outputs).index(name))


def is_read(jaxpr: Any, output: int) -> bool:
    """Whether an equation reads that output variable, also within a jitted function that returns it among others."""
    variable = jaxpr.outvars[output]
    for equation in jaxpr.eqns:
        if any(read is variable for read in equation.invars):
            return True
        inner = equation.params.get("jaxpr")
        if hasattr(inner, "jaxpr") and len(equation.outvars) > 1 and variable in equation.outvars:
            return is_read(inner.jaxpr, equation.outvars.index(variable))
    return False


@check("pointwise", relies_on=["float64"])
def pointwise(subject: Subject) -> str:
    """For an `PointwiseCell`: a step is `pointwise` of the pre-activations by name, formed here one block at a time.

    `z[name] = x W_name + h R_name + b_name`, to a relative difference of 1e-12; and `gates` is `activate` of them. Does
    not apply to a cell that overrides `__call__`, which runs by the plain scan.
    """
    cell = subject.at(jnp.float64)
    if not isinstance(cell, PointwiseCell):
        raise NotApplicable("the cell is no rnn_jax.PointwiseCell")
    if type(cell).__call__ is not PointwiseCell.__call__:
        raise NotApplicable("the cell overrides `__call__`, so it runs by the plain scan")
    carry, x = subject.carry_after_steps(cell), subject.inputs(BATCH)
    carry, x = on_device((carry, x))
    kernel, recurrent_kernel, bias = on_host(cell.weights())
    names = cell.gate_columns()
    blocks = {name: np.zeros((BATCH, cell.hidden_features)) for name in names}
    for vector, matrix, columns in (
        (x, kernel, cell.input_gates),
        (cell.hidden(carry) if cell.recurrent_gates else x, recurrent_kernel, cell.recurrent_gates),
    ):
        for name, block in zip(columns, np.split(matrix, max(1, len(columns)), axis=1)):
            blocks[name] = blocks[name] + np.asarray(vector) @ block
    if bias is not None:
        blocks = {name: blocks[name] + part for name, part in zip(names, np.split(bias, len(names)), strict=True)}
    z = on_device(blocks)
    differences = [
        relative_difference(cell(carry, x), cell.pointwise(z, carry), _EXACT, "a step against pointwise"),
        relative_difference(cell.gates(carry, x), cell.activate(z, carry), _EXACT, "gates against activate"),
    ]
    return difference_text(differences, _EXACT, f"a step against pointwise of {', '.join(names)}")
