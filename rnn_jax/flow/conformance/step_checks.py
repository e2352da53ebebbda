"""What a cell is, and what one step of it does: its contract, its types, its parameters, JAX's transforms."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rnn_jax.cell import Cell
from rnn_jax.constant import keep_constants
from rnn_jax.errors import exception_text
from rnn_jax.flow.conformance.checks import CHECKS, check
from rnn_jax.flow.conformance.numbers import (
    EXACT,
    Arrays,
    abstract_cast,
    cast,
    counterpart,
    difference_text,
    dot,
    equal,
    finite,
    inexact,
    is_inexact,
    is_variable,
    jittered,
    norm,
    normals,
    on_device,
    on_host,
    relative_difference,
    with_inexact,
)
from rnn_jax.flow.conformance.report import (
    Failed,
    NotApplicable,
    carry_text,
    shape_of,
    structure_text,
)
from rnn_jax.flow.conformance.subject import (
    BATCH,
    TIME,
    Subject,
    at_step,
    cast_cell,
    jit_once,
    loop,
    one_step,
    outputs_and_gradients,
    scanned,
    stacked,
    swapped,
    trainable,
    weights_for,
)

Array = jax.Array
Carry = Any
PyTree = Any

_DIFFERENCES = 1e-6  # float64, central differences
_BFLOAT16 = 0.1  # bfloat16 has 8 bits


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
    others = [name for name in CHECKS if name != "contract"]
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
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
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
    xs = subject.inputs(BATCH, TIME)
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
        relative_difference(one_axis, want, EXACT, "one batch axis against example by example"),
        relative_difference(two_axes, want_two, EXACT, "two batch axes against example by example"),
    ]
    return difference_text(differences, EXACT, "none, one and two")


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
        relative_difference(passed, want, EXACT, "jit, cell passed"),
        relative_difference(closed, want, EXACT, "jit, cell closed over"),
        relative_difference(to_x_closed, to_x, EXACT, "grad, cell closed over"),
    ]
    return difference_text(differences, EXACT, "cell passed and closed over")


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
        relative_difference(closed, want, EXACT, "over examples, cell closed over"),
        relative_difference(passed, want, EXACT, "over examples, cell passed"),
        relative_difference(together, pair, EXACT, "over an ensemble of cells"),
    ]
    return difference_text(differences, EXACT, "over examples and over an ensemble")


@check("scan", relies_on=["float64"])
def scan(subject: Subject) -> str:
    """`jax.lax.scan` over the cell gives what the Python loop gives: relative difference at most 1e-12."""
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    last, ys = on_host(jit_once(partial(jax.lax.scan, lambda c, x: cell(c, x)))(carry, swapped(xs)))
    want, _ = outputs_and_gradients(loop, cell, carry, xs, weights_for(subject, cell, carry, xs))
    difference = relative_difference((last, swapped(ys)), want, EXACT, "scan against the Python loop")
    return difference_text([difference], EXACT, f"{TIME} steps")


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
    xs = subject.inputs(BATCH, TIME, dtype=jnp.bfloat16)
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
        carry, xs = subject.carry_after_steps(cell, draw=point), subject.inputs(BATCH, TIME, draw=point)
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
