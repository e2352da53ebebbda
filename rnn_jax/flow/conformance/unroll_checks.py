"""A cell carried through time: every driver and instrument of this library against a plain loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import asks_for, carry_names, step
from rnn_jax.flow.adjoint import adjoints
from rnn_jax.flow.conformance.checks import check
from rnn_jax.flow.conformance.numbers import (
    EXACT,
    GRADIENT,
    Arrays,
    difference_text,
    dot,
    equal,
    example,
    finite,
    inexact,
    is_inexact,
    largest,
    normals,
    on_host,
    relative_difference,
    with_inexact,
)
from rnn_jax.flow.conformance.report import Failed, NotApplicable
from rnn_jax.flow.conformance.subject import (
    BATCH,
    HALF,
    TIME,
    LoopByExample,
    Subject,
    abstract_outputs,
    at_step,
    jit_once,
    loop,
    one_step,
    outputs_and_gradients,
    scanned,
    stacked,
    two_loops,
    weights_for,
)
from rnn_jax.flow.profile import gradient_profile
from rnn_jax.layers import RNN
from rnn_jax.unroll import fused_obstacle, unroll

Array = jax.Array
Carry = Any
PyTree = Any

_ADJOINT = 1e-5  # their scale is a float32
_LOG10 = 1e-4  # of a profile, which is float32


@check("unroll", relies_on=["batch axes"])
def unroll_is_the_loop(subject: Subject) -> str:
    """`rnn_jax.unroll` gives the outputs (to 1e-12) and gradients (to 1e-8) of the plain Python loop, in float64.

    Once forward, and once in reverse with lengths and resets against one example after another. So it holds for
    whatever faster way `unroll` has with this kind of cell.
    """
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    args = (cell, carry, xs, weights_for(subject, cell, carry, xs))
    lengths, resets = (TIME, HALF, 1), ((1, HALF), (), (0,))
    masks = np.array([[t in steps for t in range(TIME)] for steps in resets])
    pairs = {
        "forward": (outputs_and_gradients(scanned, *args), outputs_and_gradients(loop, *args)),
        "reverse, lengths, resets": (
            outputs_and_gradients(scanned, *args, np.asarray(lengths), masks, reverse=True),
            outputs_and_gradients(LoopByExample(lengths, resets), *args),
        ),
    }
    differences = []
    for how, (got, want) in pairs.items():
        differences.append(relative_difference(got[0], want[0], EXACT, f"{how}: outputs"))
        for k, of in enumerate(("parameters", "initial carry", "inputs")):
            differences.append(relative_difference(got[1][k], want[1][k], GRADIENT, f"{how}: gradient to the {of}"))
    obstacle = fused_obstacle(cell, xs, carry)
    path = "fast path" if obstacle is None else f"plain scan, as {obstacle}"
    return difference_text(differences, GRADIENT, f"outputs and gradients against the Python loop ({path})")


@check("context", relies_on=["unroll"])
def context_is_the_same_at_every_step(subject: Subject) -> str:
    """A cell that asks for a context: outputs of `rnn_jax.unroll` to 1e-12, and gradients, that of the context too, to
    1e-8, of a Python loop that hands the context to every step. In float64.
    """
    if not subject.asks_for_context:
        raise NotApplicable("the cell asks for no context")
    cell = subject.at(jnp.float64)
    carry, (xs, contexts) = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    operands = (cell, carry, xs, at_step(contexts, 0))
    shapes = abstract_outputs(cell, carry, (xs, contexts))
    weights = normals(inexact(shapes), np.random.default_rng([subject.seed, 19]))

    def python_loop(cell, carry, xs, context):
        every_step = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (BATCH, TIME, *x.shape[1:])), context)
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
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    weights = weights_for(subject, cell, carry, xs)
    keys = jax.random.split(jax.random.key(subject.seed))

    def python_loop(cell, carry, xs, key=keys[0]):
        ys = []
        for t in range(TIME):
            carry, y = step(cell, carry, at_step(xs, t), key=jax.random.fold_in(key, t))
            ys.append(y)
        return carry, stacked(ys, axis=1)

    def unrolled(cell, carry, xs, key=keys[0], **options):
        return unroll(cell, xs, carry, key=key, **options)

    text = same_with_gradients(unrolled, python_loop, (cell, carry, xs), weights, "with a key, against the Python loop")
    run = jit_once(unrolled)
    if equal(run(cell, carry, xs, keys[0]), run(cell, carry, xs, keys[1])):
        raise Failed("another key gives the same outputs; allowed: a cell that uses its key, or does not ask for one.")
    half = slice(HALF)
    padded = on_host(run(cell, carry, xs, keys[0], lengths=np.full(BATCH, HALF)))
    alone = run(cell, carry, at_step(xs, half), keys[0])
    relative_difference((padded[0], at_step(padded[1], half)), alone, EXACT, "padded against not padded")
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
        relative_difference(outputs, want_outputs, EXACT, f"{what}: outputs"),
        relative_difference(gradients, want_gradients, GRADIENT, f"{what}: gradients"),
    ]
    return difference_text(differences, GRADIENT, what)


@check("adjoints", relies_on=["unroll", "parameters"])
def adjoints_are_brute_force(subject: Subject) -> str:
    """`flow.gradient_profile` and `flow.adjoints` show the gradient to zeros added to every carry of a Python loop.

    The profile (whole carry and parts, float32) to 1e-4 in log10; the adjoints to a relative difference of 1e-5; the
    parameter gradients that come with the profile to 1e-8. In float64.
    """
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    weights = weights_for(subject, cell, carry, xs)

    @jit_once
    @jax.grad
    def brute_force(zeros):
        h, ys = carry, []
        for t in range(TIME):
            h, y = cell(h, at_step(xs, t))
            h = with_inexact(h, [part + zero[:, t] for part, zero in zip(inexact(h), zeros, strict=True)])
            ys.append(y)
        return dot(weights, inexact((h, stacked(ys, axis=1))))

    want = on_host(brute_force([np.zeros((BATCH, TIME, *part.shape[1:]), part.dtype) for part in inexact(carry)]))
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
    relative_difference(inexact(profile.grads), to_cell, GRADIENT, "parameter gradients of gradient_profile")

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
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    weights = weights_for(subject, cell, carry, xs)
    lengths = np.array([TIME, HALF, 0])
    padded = np.arange(TIME) >= lengths[:, None]
    no_resets = np.zeros((BATCH, TIME), bool)
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
    for t in range(HALF):
        alone, y = on_host(one_step(cell, alone, at_step(xs, t)))
        ys_alone.append(example(y, 1))
    alone = (example(alone, 1), jax.tree.map(lambda *parts: np.stack(parts, 1), *ys_alone))
    got = (example(last, 1), at_step(example(ys, 1), slice(HALF)))
    return difference_text(
        [relative_difference(got, alone, EXACT, "a padded sequence against the same alone")],
        EXACT,
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
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    weights, count = weights_for(subject, cell, carry, xs), len(inexact(carry))
    resets = np.tile(np.arange(TIME) == HALF, (BATCH, 1))
    # With full lengths, so that it is the program that `padding` compiles.
    once = partial(outputs_and_gradients, scanned, cell, carry, xs)
    (last, ys), got = once(weights, np.full(BATCH, TIME), resets)
    (want_last, want_ys), want = outputs_and_gradients(two_loops, cell, carry, xs, weights)
    differences = [relative_difference((last, ys), (want_last, want_ys), EXACT, "outputs and carry")]
    for k, of in enumerate(("parameters", "initial carry", "inputs")):
        differences.append(relative_difference(got[k], want[k], GRADIENT, f"gradient to the {of}"))
    behind = [np.concatenate([0 * part[:, :HALF], part[:, HALF:]], 1) for part in weights[count:]]
    _, (_, to_carry, to_xs) = once([*weights[:count], *behind], np.full(BATCH, TIME), resets)
    if largest([to_carry, at_step(to_xs, slice(HALF))]) != 0:
        raise Failed("outputs behind a reset send a gradient before it; allowed: exactly zero.")
    return difference_text(differences, GRADIENT, "against two sequences run apart")


@check("flax.nnx.RNN", relies_on=["unroll"])
def flax_rnn(subject: Subject) -> str:
    """`flax.nnx.RNN` runs the cell, with the outputs and the final carry of `rnn_jax.RNN` to 1e-12, in float64."""
    cell = subject.at(jnp.float64)
    carry, xs = subject.carry_after_steps(cell), subject.inputs(BATCH, TIME)
    if len(jax.tree.leaves(xs)) > 1:
        raise NotApplicable("the cell reads a pytree or asks for a context, which flax.nnx.RNN does not give")

    @jit_once
    def both(ours, theirs, xs, carry):
        return ours(xs, initial_carry=carry), theirs(xs, initial_carry=carry)

    got, want = both(RNN(cell, return_carry=True), nnx.RNN(cell, return_carry=True), xs, carry)
    return difference_text(
        [relative_difference(got, want, EXACT, "rnn_jax.RNN against flax.nnx.RNN")], EXACT, "outputs and carry"
    )
