"""What holds for every cell of the registry, at a cost of about a second each, and the conformance kit.

A new cell is tested here unasked: its contract, its types without computing anything, and one compiled program against
a loop in plain Python. Its equations are held to a reference in `tests/cells/`; what drivers and instruments promise is
tested on a few kinds of cell (`reference.REPRESENTATIVE`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import RNN, flow, unroll
from rnn_jax.registry import cell_info
from tests import reference, user_cells

F, H = 2, 3
EVERY_CELL = pytest.mark.parametrize("name", rnn_jax.list_cells())
USER_CELLS = [
    name
    for name, cls in vars(user_cells).items()
    if isinstance(cls, type) and issubclass(cls, nnx.RNNCellBase) and cls.__module__ == user_cells.__name__
]


def make(name, in_features=F, hidden_features=H, seed=0, **kwargs):
    return rnn_jax.make_cell(name, in_features, hidden_features, rngs=nnx.Rngs(seed), **kwargs)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# ------------------------------------------------------------------------------------------------------ the contract


@EVERY_CELL
def test_a_cell_is_a_flax_cell_of_trainable_numbers_drawn_from_its_seed(name):
    cell, same, other = make(name), make(name), make(name, seed=1)
    assert type(cell) is cell_info(name).cls
    assert isinstance(cell, nnx.RNNCellBase)
    assert cell.num_feature_axes == 1
    assert jax.tree.leaves(cell)
    assert all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(cell))  # no keys, no counters
    reference.assert_close(same, cell, 0.0)
    pairs = zip(jax.tree.leaves(cell), jax.tree.leaves(other), strict=True)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)
    if isinstance(cell, rnn_jax.PointwiseCell):  # one bias for each distinct gate
        W, R, b = cell.weights()
        assert W.shape == (F, H * len(cell.input_gates))
        assert R.shape[1] == H * len(cell.recurrent_gates)
        assert b.shape == (H * len(set(cell.input_gates) | set(cell.recurrent_gates)),)


@EVERY_CELL
def test_what_a_cell_cannot_be_built_of_or_read_is_refused(name):
    for argument, size in (("in_features", 0), ("in_features", -1), ("hidden_features", 0), ("hidden_features", -1)):
        with pytest.raises(ValueError, match=rf"{argument}={size} is not a size; allowed: 1 or more\."):
            make(name, **{argument: size})
    with pytest.raises(ValueError, match=rf"cell '{name}' has no argument 'forgetbias'; allowed: .*param_dtype"):
        make(f"{name}(forgetbias=0)")
    cell, xs = make(name), jnp.zeros((2, 4, F + 1), jnp.float32)
    sentence = rf"have {F + 1} features; allowed: {F}, the in_features of this {type(cell).__name__}"
    for run in (lambda: unroll(cell, xs), lambda: cell(cell.initialize_carry((2, F)), xs[:, 0])):
        with pytest.raises(ValueError, match=sentence):
            run()


@EVERY_CELL
def test_gates_are_told_by_name_for_each_sequence_and_stay_in_their_range(name):
    cell = reference.make_cell(name, F, H)
    gates = cell.gates(reference.random_carry(cell, (2,), seed=1), 10.0 * reference.normal(0, 2, F))
    assert gates
    assert set(cell.gate_ranges) <= set(gates)
    for gate, value in gates.items():
        assert value.shape[0] == 2
        low, high = cell.gate_ranges.get(gate, (-np.inf, np.inf))
        assert np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)), gate


# -------------------------------------------------------------------------------------- types and shapes, abstractly


@EVERY_CELL
def test_a_step_keeps_the_carry_for_any_batch_axes_and_needs_no_rngs(name):
    """Shapes and types of the initial carry, with a unit and an input or more."""

    def step(cell, x):
        carry = cell.initialize_carry(x.shape)
        return carry, cell(carry, x)

    for sizes in ((F, H), (1, 1)):
        cell = jax.eval_shape(lambda sizes=sizes: make(name, *sizes))
        for batch in ((), (4,), (2, 4)):
            before, (after, y) = jax.eval_shape(step, cell, jax.ShapeDtypeStruct((*batch, sizes[0]), jnp.float32))
            assert jax.tree.structure(after) == jax.tree.structure(before)
            assert shapes(after) == shapes(before)
            assert all(part.shape[: len(batch)] == batch for part in jax.tree.leaves(before))
            assert y.shape == (*batch, cell.out_features)


TYPES = [  # of inputs and parameters, the argument `dtype`, and of outputs
    ("float32", "float32", None, "float32"),  # though float64 is switched on
    ("float64", "float64", None, "float64"),
    ("bfloat16", "bfloat16", None, "bfloat16"),
    ("int32", "float32", None, "float32"),
    ("bfloat16", "float32", None, "float32"),
    ("float64", "float32", None, "float64"),
    ("float32", "float32", "bfloat16", "bfloat16"),
    ("int32", "float32", "bfloat16", "bfloat16"),
]


@EVERY_CELL
def test_outputs_have_the_type_of_the_products_and_carries_that_of_the_parameters(name):
    fast = cell_info(name).recurrence == "pointwise"
    for x, param, dtype, output in TYPES:
        cell = jax.eval_shape(lambda dtype=dtype, param=param: make(name, dtype=dtype, param_dtype=jnp.dtype(param)))
        xs, lengths = jax.ShapeDtypeStruct((2, 4, F), x), jax.ShapeDtypeStruct((2,), jnp.int32)
        for method in ("auto", "scan") if fast else ("auto",):
            with jax.numpy_dtype_promotion("strict" if x == param and dtype is None else "standard"):
                final, ys = jax.eval_shape(
                    lambda cell, xs, lengths, method=method: unroll(cell, xs, lengths=lengths, method=method),
                    *(cell, xs, lengths),
                )
            assert ys.dtype == output, (x, param, dtype)
            assert {leaf.dtype for leaf in jax.tree.leaves((cell, final))} == {jnp.dtype(param)}, (x, param, dtype)


# -------------------------------------------------------------------------------- one program, against a Python loop


@EVERY_CELL
def test_a_compiled_run_its_gradient_and_its_profile_are_those_of_a_loop_in_python(name):
    """Outputs, gradients and adjoints of a padded batch with resets, in either direction for one half of the cells."""
    cell, xs = reference.make_cell(name, F, H, seed=1), reference.normal(2, 2, 3, F)
    carry, reverse = reference.random_carry(cell, (2,), seed=3), len(name) % 2 == 0
    how = {"lengths": np.array([3, 2]), "resets": np.array([[0, 0, 1], [0, 1, 0]], bool)}

    def loss_of(final, ys):
        return jnp.sum(jnp.cos(ys)) + sum(jnp.sum(jnp.sin(part)) for part in jax.tree.leaves(final)), (final, ys)

    def by_layer(model):
        options = {"seq_lengths": how["lengths"], "resets": how["resets"]}
        return loss_of(*model["rnn"](model["xs"], initial_carry=model["carry"], **options))

    model = {"rnn": RNN(cell, return_carry=True, reverse=reverse, keep_order=True), "xs": xs, "carry": carry}
    run = reference.quick_jit(lambda model: flow.gradient_profile(by_layer, model, has_aux=True))
    profile = run(model)

    def by_loop(cell, xs, carry, eps):
        return loss_of(*reference.python_unroll(cell, xs, carry, eps=eps, reverse=reverse, **how))

    gradient = jax.value_and_grad(by_loop, argnums=(0, 1, 2, 3), has_aux=True)
    (_, outputs), (to_cell, to_xs, to_carry, adjoint) = gradient(cell, xs, carry, reference.zero_eps(cell, (2,), 3))
    reference.assert_close(profile.aux, outputs)
    reference.assert_close(profile.grads["rnn"].cell, to_cell)
    reference.assert_close((profile.grads["xs"], profile.grads["carry"]), (to_xs, to_carry))
    reference.assert_log10_of(profile.log10_norm["rnn"], reference.root_mean_square(adjoint))
    for ours in (profile.aux[1], profile.grads["xs"]):
        np.testing.assert_array_equal(ours[1, 2:], 0.0)  # padding


# ------------------------------------------------------------------------------------------------- the conformance kit


@pytest.mark.kit
@pytest.mark.parametrize("name", [*reference.every_cell(), *(f"tests.user_cells:{name}" for name in USER_CELLS)])
def test_the_conformance_kit_passes(name):
    report = flow.check_cell(name)
    assert report.passed, str(report)
    not_applicable = {line.name for line in report.checks if line.passed is None}
    if name in rnn_jax.list_cells():
        pointwise = issubclass(cell_info(name).cls, rnn_jax.PointwiseCell)
        assert not_applicable <= {"context", "key", "bfloat16", *(() if pointwise else ("pointwise",))}
    if name.startswith("flax"):
        assert not_applicable == {"context", "key", "pointwise", "gates"}
