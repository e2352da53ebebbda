"""Claims about cells in general, and about building one from its name. Those on every cell: test_every_cell.py."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax.cell import carry_names
from rnn_jax.initializers import as_initializer, chrono_bias
from rnn_jax.registry import cell_info, cell_table, split_names
from tests import reference

CATALOGUE = list(rnn_jax.list_cells())
KINDS = ["lstm", "gru_reset_before"]  # on the fast path, and off it


def make(name, in_features=2, hidden_features=4, **kwargs):
    return rnn_jax.make_cell(name, in_features, hidden_features, rngs=nnx.Rngs(0), **kwargs)


# ------------------------------------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", KINDS)
def test_all_leading_axes_are_batch_axes(name):
    cell = reference.make_cell(name, 2, 4)
    x, carry = reference.normal(0, 3, 2, 2), reference.random_carry(cell, (3, 2), seed=1)
    step = reference.quick_jit(cell)
    next_carry, y = step(carry, x)
    assert y.shape[:2] == (3, 2)
    for b in np.ndindex(3, 2):
        alone = step(jax.tree.map(lambda part, b=b: part[b], carry), x[b])
        reference.assert_close(jax.tree.map(lambda part, b=b: part[b], (next_carry, y)), alone, 1e-14)


@pytest.mark.parametrize("name", KINDS)
def test_the_carry_is_zero_at_first_and_needs_no_rngs(name):
    cell = make(name)
    for part in jax.tree.leaves(cell.initialize_carry((3, 5, 2))):
        np.testing.assert_array_equal(part, np.zeros((3, 5, 4), np.float32))
        assert part.dtype == jnp.float32


@pytest.mark.parametrize("rngs", [nnx.Rngs(7), nnx.Rngs(7).carry], ids=["Rngs", "RngStream"])
def test_a_random_carry_draws_every_part_anew(rngs):
    carry = make("lstm").initialize_carry((3, 2), rngs, nnx.initializers.normal(1.0))
    assert carry.c.shape == carry.h.shape == (3, 4)
    assert not np.any(np.asarray(carry.c) == np.asarray(carry.h))
    again = make("lstm").initialize_carry((3, 2), nnx.Rngs(8), nnx.initializers.normal(1.0))
    assert not np.any(np.asarray(carry.c) == np.asarray(again.c))


def test_the_columns_of_the_gru_are_those_of_its_docstring():
    assert make("gru").gate_columns() == ("reset", "update", "candidate_x", "candidate_h")


# ---------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("name", KINDS)
def test_a_cell_in_bfloat16_has_finite_gradients_in_bfloat16(name):
    """Types of all else: test_every_cell.py."""
    cell, xs = make(name, param_dtype=jnp.bfloat16), jnp.ones((3, 5, 2), jnp.bfloat16)
    grads = reference.quick_jit(jax.grad(lambda cell: jnp.sum(rnn_jax.unroll(cell, xs)[1])))(cell)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.bfloat16
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_products_keep_a_float32_state(name):
    narrow, wide = make(name, dtype=jnp.bfloat16), make(name)
    xs = reference.normal(0, 3, 6, 2, dtype=jnp.float32)
    (carry, ys), (wide_carry, wide_ys) = (reference.quick_jit(rnn_jax.unroll)(cell, xs) for cell in (narrow, wide))
    assert ys.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((narrow, carry))} == {jnp.dtype(jnp.float32)}
    errors = [reference.relative_error(*pair) for pair in zip(*map(jax.tree.leaves, (carry, wide_carry)), strict=True)]
    assert 1e-5 < max(errors) < 2e-2  # as many digits as bfloat16 products give, and no more: they really are narrow
    assert reference.relative_error(ys, wide_ys) < 3e-2


# ---------------------------------------------------------------------------------------------------- initializers


def blocks(name="lstm", **kwargs):
    """Returns the kernel and the recurrent kernel of a cell, gate by gate, in float64."""
    cell = make(name, 60, 50, param_dtype=jnp.float64, **kwargs)
    W = np.split(np.asarray(cell.kernel[...]), len(cell.input_gates), axis=-1)
    R = np.split(np.asarray(cell.recurrent_kernel[...]), len(cell.recurrent_gates), axis=-1)
    return W, R


@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_kernels_are_lecun_normal_and_orthogonal_by_default_in_every_block(name):
    W, R = blocks(name)
    for block in W:
        assert abs(np.std(block) * np.sqrt(60) - 1.0) < 0.1  # 3000 draws: 8 standard errors
    for block in R:
        np.testing.assert_allclose(block.T @ block, np.eye(50), atol=1e-12)
    assert not any(np.array_equal(a, b) for k, a in enumerate(R) for b in R[:k])


@pytest.mark.parametrize(
    ("initializer", "claim"),
    [
        ("identity", lambda R: np.array_equal(R, np.eye(50))),
        ("zeros", lambda R: not np.any(R)),
        ("orthogonal", lambda R: np.allclose(R @ R.T, np.eye(50), atol=1e-12)),
        ("lecun_normal", lambda R: abs(np.std(R) * np.sqrt(50) - 1) < 0.1),
        ("he_normal", lambda R: abs(np.std(R) * np.sqrt(25) - 1) < 0.1),
        ("small_normal", lambda R: abs(np.std(R) / 0.001 - 1) < 0.1),  # 2500 draws: 7 standard errors
        ("glorot_uniform", lambda R: 0.97 < np.max(np.abs(R)) / np.sqrt(6 / 100) <= 1.0),
    ],
)
def test_every_block_is_what_the_initializer_promises(initializer, claim):
    for block in blocks(recurrent_kernel_init=initializer)[1]:
        assert claim(block)


def test_many_models_in_one_program_are_drawn_one_after_another():
    # Two batched QR decompositions at once wait for each other for ever on a machine of two cores.
    keys = jax.random.split(jax.random.key(0), 3)
    build = jax.vmap(lambda key: rnn_jax.make_cell("gru", 2, 4, rngs=nnx.Rngs(key)))
    decomposed = re.findall(r"call @qr\w*\(%\w+\) : \(tensor<(\w+)>\)", jax.jit(build).lower(keys).as_text())
    assert set(decomposed) == {"4x4xf32"}


def test_an_initializer_may_be_a_function_and_a_bias_may_have_one():
    def sevens(key, shape, dtype):
        return jnp.full(shape, 7.0, dtype)

    cell = make("elman", kernel_init=sevens, bias_init=sevens)
    np.testing.assert_array_equal(cell.kernel[...], np.full((2, 4), 7.0))
    np.testing.assert_array_equal(cell.bias[...], np.full(4, 7.0))


def test_an_unknown_initializer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"initializer 'ortho' is unknown; allowed: identity, .*, or a function\."):
        make("elman", recurrent_kernel_init="ortho")
    assert as_initializer("identity")(jax.random.key(0), (2, 3), jnp.float32).shape == (2, 3)


@pytest.mark.parametrize("name", ["elman", "irnn", "lstm", "gru"])
def test_no_bias_leaves_two_kernels(name):
    cell = make(name, use_bias=False)
    assert cell.bias is None
    assert len(jax.tree.leaves(cell)) == 2
    assert jax.eval_shape(rnn_jax.unroll, cell, jnp.ones((5, 2), jnp.float32))[1].shape == (5, 4)


def test_chrono_bias_is_the_log_of_a_uniform_number():
    drawn = np.exp(np.asarray(chrono_bias(jax.random.key(0), 10.0, 1000, jnp.float64)))
    assert drawn.min() >= 1.0
    assert drawn.max() <= 9.0
    quarters = np.quantile(drawn, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quarters, [3.0, 5.0, 7.0], atol=0.7)  # 5 standard errors


# ------------------------------------------------------------------------------------------------ names and building


def test_the_registry_is_sorted_and_holds_cells_with_their_papers():
    assert sorted(rnn_jax.list_cells()) == rnn_jax.list_cells() == CATALOGUE
    assert {"elman", "irnn", "lstm", "gru", "gru_reset_before"} <= set(CATALOGUE)
    for info in map(cell_info, CATALOGUE):
        assert issubclass(info.cls, nnx.RNNCellBase)
        assert re.search(r"\b(19|20)\d\d\b", info.paper), info
        assert getattr(rnn_jax, info.cls.__name__) is info.cls


def test_cells_of_one_family():
    assert rnn_jax.list_cells("gru") == ["gru", "gru_reset_before"]
    with pytest.raises(ValueError, match=r"^family='grus' is unknown; allowed: elman, grid_lstm, gru, lstm\.$"):
        rnn_jax.list_cells("grus")


def test_a_registered_cell_is_built_by_its_name(monkeypatch):
    monkeypatch.setattr("rnn_jax.registry._REGISTRY", {name: cell_info(name) for name in CATALOGUE})
    assert rnn_jax.register("leaky", paper="ours 2026")(reference.LeakyCell) is reference.LeakyCell
    assert isinstance(make("leaky(rate=0.25)"), reference.LeakyCell)
    assert "leaky" in rnn_jax.list_cells()


def test_a_name_can_be_taken_once():
    with pytest.raises(ValueError, match=r"cell name 'lstm' is taken by LSTMCell; allowed: a new name\."):
        rnn_jax.register("lstm", paper="none")(reference.LeakyCell)


def test_arguments_may_stand_in_the_name_and_win_there():
    def forget_bias(cell):
        return float(cell.bias[...][4])

    assert forget_bias(make("lstm(forget_bias=0)")) == 0.0
    assert forget_bias(make("lstm( forget_bias = -2.5 )")) == -2.5
    assert forget_bias(make("lstm()")) == forget_bias(make("lstm")) == 1.0
    assert forget_bias(make("lstm(forget_bias=0)", forget_bias=3.0)) == 0.0
    assert forget_bias(make("lstm(use_bias=True)", forget_bias=3.0)) == 3.0


def test_a_string_among_the_arguments_may_hold_any_sign():
    cell = make("elman(activation='relu', recurrent_kernel_init=\"identity\")")
    np.testing.assert_array_equal(cell.recurrent_kernel[...], np.eye(4))
    with pytest.raises(ValueError, match=r"activation='a\(b' is unknown"):
        make("elman(activation='a(b')")


def test_a_user_defined_cell_is_built_from_its_path():
    cell = make("tests.reference:LeakyCell(rate=0.25)")
    assert isinstance(cell, reference.LeakyCell)
    assert cell.rate == 0.25
    carry, ys = rnn_jax.unroll(cell, jnp.ones((3, 5, 2), jnp.float32))
    assert ys.shape == (3, 5, 4)
    np.testing.assert_array_equal(carry["steps"], [5, 5, 5])


def test_an_argument_of_a_user_defined_cell_need_not_be_keyword_only():
    assert make("tests.reference:PositionalCell(rate=0.25)").rate == 0.25
    assert make("tests.reference:PositionalCell", rate=0.125).rate == 0.125


@pytest.mark.parametrize("path", ["tests.reference:", ":LSTMCell", ":", ""])
def test_half_a_path_is_an_unknown_cell(path):
    with pytest.raises(ValueError, match=f"unknown cell '{path}'; allowed: .*path.to.module:Class"):
        make(path)


@pytest.mark.parametrize("name", reference.FLAX_CELLS)
def test_the_cells_of_flax_are_built_from_their_paths(name):
    assert type(make(f"flax.nnx:{name}")) is getattr(nnx, name)


def test_an_unknown_cell_is_refused_with_the_known_ones():
    sentence = f"unknown cell 'ltsm'; allowed: {', '.join(CATALOGUE)}, or path.to.module:Class."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make("ltsm")


def test_an_unknown_argument_of_a_user_defined_cell_is_refused():
    with pytest.raises(ValueError, match=r"has no argument 'speed'; allowed: rate, param_dtype\."):
        make("tests.reference:LeakyCell(speed=1)")


@pytest.mark.parametrize("argument", ["in_features", "hidden_features", "rngs"])
def test_a_name_cannot_hold_what_the_caller_gives(argument):
    with pytest.raises(ValueError, match=argument):
        make(f"lstm({argument}=3)")


@pytest.mark.parametrize(
    "spec",
    [
        "lstm(",
        "lstm(forget_bias=0",
        "lstm(0)",
        "lstm(forget_bias=zero)",
        "lstm(forget_bias=0, forget_bias=1)",
        "lstm(forget_bias=0) + 1",
        "lstm(forget_bias=0)(chrono=9)",
        "lstm(**{'forget_bias': 0})",
        "lstm(forget_bias=print())",
    ],
)
def test_an_unreadable_name_is_refused(spec):
    sentence = f"cell {spec!r} cannot be read; allowed: name, or name(argument=value, ...) with literal values."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make(spec)


def test_a_missing_module_is_named():
    with pytest.raises(ValueError, match=r"cell 'no\.such:Cell': module 'no\.such' cannot be imported \(.*No module"):
        make("no.such:Cell")


def test_a_missing_class_is_named():
    with pytest.raises(ValueError, match=r"cell 'tests\.reference:NoCell': module .* has no .*'NoCell'\."):
        make("tests.reference:NoCell")


def test_a_class_that_is_no_cell_is_refused():
    with pytest.raises(
        ValueError, match=r"cell 'flax\.nnx:Linear': module .* has no flax\.nnx\.RNNCellBase 'Linear'\."
    ):
        make("flax.nnx:Linear")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lstm", ["lstm"]),
        ("elman, lstm ,gru", ["elman", "lstm", "gru"]),
        ("lstm(forget_bias=0),lstm", ["lstm(forget_bias=0)", "lstm"]),
        ("elman(activation='relu', use_bias=False),my.module:Cell", ["elman(activation='relu', use_bias=False)",
                                                                     "my.module:Cell"]),
    ],
)  # fmt: skip
def test_commas_part_names_but_not_their_arguments(text, names):
    assert split_names(text) == names


@pytest.mark.parametrize(("text", "reason"), [("", "no cell"), (" , ", "no cell"), ("lstm,gru,lstm", "a cell twice")])
def test_no_cell_or_one_cell_twice_is_refused(text, reason):
    with pytest.raises(ValueError, match=f"cells={text!r} names {reason}; allowed: different names"):
        split_names(text)


def test_the_parts_of_a_carry_have_names():
    def names(cell):
        return carry_names(cell, cell.initialize_carry((3, 2), nnx.Rngs(0)))

    assert names(make("lstm")) == ("c", "h")
    assert names(make("flax.nnx:LSTMCell")) == ("c", "h")
    assert names(make("flax.nnx:OptimizedLSTMCell")) == ("c", "h")
    assert names(make("gru")) == ("",)
    assert names(make("flax.nnx:GRUCell")) == ("",)
    assert names(make("tests.reference:LeakyCell")) == ("h", "steps")


def test_every_file_of_the_family_folder_enters_its_cells():
    """A new cell is one new class in one file: nothing else has to name it."""
    package = importlib.import_module("rnn_jax.cells")
    for info in map(cell_info, rnn_jax.list_cells()):
        assert info.cls.__module__.startswith(package.__name__ + ".")


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_add_bias_adds_in_the_type_of_z_without_implicit_promotion(batch):
    z, bias = jnp.ones((*batch, 5), jnp.bfloat16), jnp.arange(5, dtype=jnp.float32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = rnn_jax.add_bias(z, bias)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(1, 6), (*batch, 5)))


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_a_sum_without_add_bias_is_refused(batch):
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        jnp.ones((*batch, 5)) + jnp.ones(5)


def test_a_cell_without_gates_says_what_to_write():
    class Gateless(rnn_jax.Cell):
        pass

    cell = Gateless(3, 5, dtype=None, param_dtype=jnp.float32)
    with pytest.raises(NotImplementedError, match=r"Gateless has no `gates\(carry, x\)`; write it .*RNNCellBase"):
        cell.gates(jnp.zeros(5), jnp.zeros(3))


def test_the_table_of_cells_is_that_of_the_registry():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "cells.md").read_text(encoding="utf-8")
    assert text.endswith(f"\n\n{cell_table()}\n"), "write docs/cells.md anew from rnn_jax.registry.cell_table()"
