"""Slow, obvious references for the tests: loops in plain Python, and the same layers by other people.

Nothing here knows how `rnn_jax` unrolls a cell or measures a gradient. A cell is called on single examples, one step
after another, and `jax.grad` differentiates the loop; weights go to and from torch and Flax through one mapping each.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax

FLAX_CELLS = ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell")

# One cell of each kind: they carry the claims about drivers and instruments (unroll, profile, adjoints, layers).
REPRESENTATIVE = {
    "elman": "pointwise, one gate, the carry is one array",
    "lstm": "pointwise, the carry has two parts",
    "gru": "pointwise, a gate whose two products stay apart",
    "gru_reset_before": "a general Cell of ours, run by the plain scan",
    "flax.nnx:LSTMCell": "a cell of Flax, which names no gates and carries a bare tuple",
    "tests.user_cells:IndRNNCell": "pointwise without a recurrent kernel",
    "tests.user_cells:MatrixCell": "a matrix memory and an integer counter in the carry",
    "tests.user_cells:AttendingCell": "asks for a context",
    "tests.user_cells:Zoneout": "a wrapper that asks for a key",
}


needs_two_devices = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


def every_cell() -> list[str]:
    """Returns the names of all cells under test: the catalogue's, so that a new one is tested unasked, and Flax's."""
    return [*rnn_jax.list_cells(), *(f"flax.nnx:{name}" for name in FLAX_CELLS)]


def quick_jit(function, **kwargs):
    """Returns `jax.jit(function, **kwargs)`, compiled in half the time to slower code: most programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **kwargs)


def make_cell(name, in_features, hidden_features, *, seed=0, dtype=jnp.float64, **kwargs):
    """Builds a cell in one dtype throughout, every parameter moved at random, so that no bias is left at 0."""
    if not name.startswith("tests."):  # the user-defined cells take `param_dtype` alone
        kwargs = {"dtype": dtype, **kwargs}
    cell = rnn_jax.make_cell(name, in_features, hidden_features, rngs=nnx.Rngs(seed), param_dtype=dtype, **kwargs)
    return randomized(cell, seed)


def randomized(tree, seed):
    """Returns the tree with a small random number added to every entry."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + (0.3 * rng.normal(size=x.shape)).astype(x.dtype), tree)


def drawn(build, seed=1, scale=0.5):
    """Returns the model that `build()` makes, but every entry of it drawn by NumPy.

    No initializer is run: each compiles a program for every shape.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return jax.device_put((scale * rng.normal(size=leaf.shape)).astype(leaf.dtype))

    return jax.tree.map(draw, jax.eval_shape(build))


def normal(seed, *shape, dtype=jnp.float64):
    """Returns random numbers."""
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(jnp.dtype(dtype)))


def random_carry(cell, batch_shape, seed, dtype=jnp.float64):
    """Returns a random carry, `[*batch, ...]`, of the cell's own structure."""
    own = cell.initialize_carry((*batch_shape, cell.in_features), nnx.Rngs(0))
    leaves, structure = jax.tree.flatten(own)
    drawn = [
        normal(seed + k, *leaf.shape, dtype=dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf  # a counter
        for k, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def with_params(cell, **arrays):
    """Returns the cell with the parameters of these names replaced."""

    def replace(path, old):
        new = arrays.pop(path[0].name, old)
        assert new.shape == old.shape, (path, new.shape, old.shape)
        return jnp.asarray(new, old.dtype)

    cell = jax.tree_util.tree_map_with_path(replace, cell)
    assert not arrays, f"no such parameters: {list(arrays)}"
    return cell


def relative_error(actual, expected) -> float:
    """Returns the largest error of an array, in units of its largest entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    largest = np.max(np.abs(expected), initial=0.0)
    error = np.max(np.abs(actual - expected), initial=0.0)
    return error if largest == 0.0 else error / largest


def assert_close(actual, expected, tolerance=1e-10):
    """Asserts that two trees have as many leaves, and each leaf an error below the tolerance (see relative_error)."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    errors = [relative_error(a, b) for a, b in zip(actual, expected, strict=True)]
    assert all(error <= tolerance for error in errors), errors


# ----------------------------------------------------------------------------------------------- the loop in Python


def python_unroll(cell, xs, carry=None, *, lengths=None, resets=None, reverse=False, eps=None):
    """Carries a cell through time: a loop over examples, and in it a loop over steps.

    Args:
      cell: any cell.
      xs: `[*batch, time, F]`.
      carry: before the first step, `[*batch, ...]`.
      lengths, resets: numpy arrays, `[*batch]` and `[*batch, time]`.
      reverse: from the last step to the first.
      eps: a tree like the carry, `[*batch, time, ...]`: what is added to carry_t on its way into step t + 1.
        The gradient with respect to it is, by definition, the adjoint.

    Returns:
      The final carry and ys, as `rnn_jax.unroll`.
    """
    *batch_shape, time, _ = xs.shape
    fresh = cell.initialize_carry(xs.shape[-1:], nnx.Rngs(0))
    structure = jax.tree.structure(fresh)
    y_zero = jnp.zeros_like(cell(fresh, jnp.zeros_like(xs[(0,) * (xs.ndim - 1)]))[1])

    def examples(array):
        return jnp.unstack(array.reshape(-1, *array.shape[len(batch_shape) :]))

    states = [fresh] * math.prod(batch_shape)
    if carry is not None:
        parts = [examples(part) for part in jax.tree.leaves(carry)]
        states = [jax.tree.unflatten(structure, one) for one in zip(*parts, strict=True)]
    all_eps = [None] * len(states)
    if eps is not None:
        all_eps = zip(*[examples(part) for part in jax.tree.leaves(eps)], strict=True)
    lengths = np.full(batch_shape, time) if lengths is None else np.asarray(lengths)
    resets = np.zeros((*batch_shape, time), bool) if resets is None else np.asarray(resets)

    final_carries, all_ys = [], []
    loop = zip(examples(xs), states, all_eps, lengths.reshape(-1), resets.reshape(-1, time), strict=True)
    for x, state, e, length, reset in loop:
        x, ys = jnp.unstack(x), [y_zero] * time
        e = None if e is None else [jnp.unstack(part) for part in e]
        for t in reversed(range(time)) if reverse else range(time):
            if t < length:
                if reset[t]:
                    state = fresh
                state, ys[t] = cell(state, x[t])
            if e is not None:
                here = jax.tree.unflatten(structure, [part[t] for part in e])
                state = jax.tree.map(jnp.add, state, here)
        final_carries.append(state)
        all_ys.append(jnp.stack(ys))

    def join(*arrays):
        return jnp.stack(arrays).reshape((*batch_shape, *arrays[0].shape))

    return jax.tree.map(join, *final_carries), join(*all_ys)


def zero_eps(cell, batch_shape, time):
    """Returns a zero for every step and part of the carry, `[*batch, time, ...]`."""
    one = cell.initialize_carry((cell.in_features,), nnx.Rngs(0))
    return jax.tree.map(lambda part: jnp.zeros((*batch_shape, time, *part.shape), part.dtype), one)


def adjoints(loss, cell, xs, carry=None, **kwargs):
    """Returns dL/d carry_t by brute force, `[*batch, time, ...]`: one zero a step, one `jax.grad`.

    Args:
      loss: `(final carry, ys) -> scalar`.
      cell, xs, carry, **kwargs: as `python_unroll`.
    """
    zeros = zero_eps(cell, xs.shape[:-2], xs.shape[-2])
    return jax.grad(lambda eps: loss(*python_unroll(cell, xs, carry, eps=eps, **kwargs)))(zeros)


def root_mean_square(adjoint, batch_axes=1):
    """Returns sqrt(mean over the batch of |a_t|^2), `[time]`, for one array or a whole carry, `[*batch, time, ...]`."""
    arrays = [np.asarray(part, np.float64) for part in jax.tree.leaves(adjoint)]
    squares = [np.sum(np.square(a.reshape(*a.shape[: batch_axes + 1], -1)), axis=-1) for a in arrays]
    return np.sqrt(np.mean(sum(squares), axis=tuple(range(batch_axes))))


def assert_log10_of(log10_norm, norm, tolerance=1e-6):
    """Asserts that `log10_norm` is log10 of `norm`, to a relative error of `norm`, and -inf exactly where that is 0."""
    log10_norm, norm = np.asarray(log10_norm, np.float64), np.asarray(norm, np.float64)
    assert log10_norm.shape == norm.shape
    np.testing.assert_array_equal(log10_norm == -np.inf, norm == 0.0)
    np.testing.assert_allclose(10.0**log10_norm, norm, rtol=tolerance, atol=0.0)


# ------------------------------------------------------------------------------------------------------------ torch


def from_torch(kind, layer, suffix, *, gradients=False):
    """THE MAPPING of torch's parameters to ours, for one layer and direction.

    * torch stores `[out, in]`, we `[in, out]`: transpose.
    * The order of the gates is the same: LSTM i, f, g, o; GRU r, z, n, torch's z being our u.
    * torch adds two biases, b_ih and b_hh, where we have one. Ours is their sum, and the gradient of each of theirs is
      the gradient of ours. Only in the candidate of the GRU they stand apart: b_ih is our `nx`, b_hh our `nh`.

    Args:
      kind: "elman", "lstm" or "gru".
      layer: the torch.nn module.
      suffix: `_l0`, `_l0_reverse`, `_l1`, ...
      gradients: map the gradients in the place of the values.
    """

    def get(name):
        parameter = getattr(layer, name + suffix)
        return (parameter.grad if gradients else parameter.detach()).numpy()

    b_ih, b_hh = get("bias_ih"), get("bias_hh")
    apart = 2 * layer.hidden_size if kind == "gru" else len(b_ih)
    if gradients:
        assert relative_error(b_ih[:apart], b_hh[:apart]) < 1e-6  # torch adds in different orders
    shared = b_ih[:apart] if gradients else b_ih[:apart] + b_hh[:apart]
    return {
        "kernel": get("weight_ih").T,
        "recurrent_kernel": get("weight_hh").T,
        "bias": np.concatenate([shared, b_ih[apart:], b_hh[apart:]] if kind == "gru" else [shared]),
    }


def torch_cases(kind):
    """Returns the cases a cell is held to torch in: (dtype, tolerance, layers, bidirectional, padded).

    The LSTM in four shapes of network; the others, which run in the same layers, in two; each once in float32.
    """
    shapes = [(1, False, False), (1, True, True), (2, False, False), (2, True, True)]
    if kind != "lstm":
        shapes = [(1, False, True), (2, True, True)]
    wide = [
        pytest.param("float64", 1e-10, layers, both, padded, id=_case_name("float64", layers, both, padded))
        for layers, both, padded in shapes
    ]
    return [*wide, pytest.param("float32", 1e-5, 1, False, False, id=_case_name("float32", 1, False, False))]


def _case_name(dtype, layers, both, padded):
    return f"{dtype}-{layers}layer{'-bidirectional' if both else ''}{'-padded' if padded else ''}"


def check_against_torch(kind, make_layer, dtype, tolerance, layers, bidirectional, padded, **cell_arguments):
    """Asserts that torch's layer and ours agree: outputs, final carry, and every gradient.

    The gradients are those of inputs, kernels, biases and initial carry, for random cotangents of outputs and final
    carry. With `padded`, torch runs on a `PackedSequence`.

    Args:
      kind: "elman", "lstm" or "gru".
      make_layer: a class of torch.nn.
      dtype: name of the dtype of everything.
      tolerance: largest error allowed, see `relative_error`.
      layers, bidirectional, padded: the case.
      **cell_arguments: of our cell.
    """
    import torch

    batch, time, in_features, hidden = 3, 6, 2, 4
    directions = 2 if bidirectional else 1
    torch.manual_seed(0)
    layer = make_layer(in_features, hidden, layers, batch_first=True, bidirectional=bidirectional)
    layer = layer.to(getattr(torch, dtype))
    rng = np.random.default_rng(0)
    parts = ("c", "h") if kind == "lstm" else ("h",)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    xs, lengths = draw(batch, time, in_features), np.array([4, 6, 1])
    initial = {part: draw(layers * directions, batch, hidden) for part in parts}
    ys_weight = draw(batch, time, hidden * directions)
    final_weight = {part: draw(layers * directions, batch, hidden) for part in parts}

    # torch
    def tensor(array):
        return torch.tensor(array, requires_grad=True)

    torch_xs, torch_initial = tensor(xs), {part: tensor(value) for part, value in initial.items()}
    torch_carry = (torch_initial["h"], torch_initial["c"]) if kind == "lstm" else torch_initial["h"]
    if padded:
        packed = torch.nn.utils.rnn.pack_padded_sequence(torch_xs, lengths, batch_first=True, enforce_sorted=False)
        packed, torch_final = layer(packed, torch_carry)
        torch_ys, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=time)
    else:
        torch_ys, torch_final = layer(torch_xs, torch_carry)
    torch_final = dict(zip(("h", "c"), torch_final if kind == "lstm" else (torch_final,), strict=False))
    torch_loss = (torch_ys * torch.tensor(ys_weight)).sum()
    for part in parts:
        torch_loss = torch_loss + (torch_final[part] * torch.tensor(final_weight[part])).sum()
    torch_loss.backward()

    # Ours: a parameter tree [layer][direction], so that gradients come back in the same places.
    suffixes = [[f"_l{k}{d}" for d in ("", "_reverse")[:directions]] for k in range(layers)]
    params = [[from_torch(kind, layer, suffix) for suffix in row] for row in suffixes]
    sizes = [in_features] + [hidden * directions] * (layers - 1)
    templates = [
        rnn_jax.make_cell(kind, size, hidden, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype), **cell_arguments)
        for size in sizes
    ]

    def nested(parts_LDBH):
        """Torch's `[layers * directions, B, H]` as one carry a layer and direction, in the order (c, h)."""
        carries = [tuple(parts_LDBH[part][k] for part in parts) for k in range(layers * directions)]
        carries = carries if kind == "lstm" else [carry[0] for carry in carries]
        if bidirectional:
            carries = [tuple(carries[2 * k : 2 * k + 2]) for k in range(layers)]
        return carries if layers > 1 else carries[0]

    def loss(params, xs, initial):
        rows = [
            [rnn_jax.RNN(with_params(template, **arrays)) for arrays in row]
            for template, row in zip(templates, params, strict=True)
        ]
        stack = [rnn_jax.Bidirectional(*row) if bidirectional else row[0] for row in rows]
        model = rnn_jax.Stack(stack) if layers > 1 else stack[0]
        final, ys = model(
            xs, initial_carry=initial, seq_lengths=jnp.asarray(lengths) if padded else None, return_carry=True
        )
        total = jnp.sum(ys * ys_weight)
        for value, weight in zip(jax.tree.leaves(final), jax.tree.leaves(nested(final_weight)), strict=True):
            total = total + jnp.sum(value * weight)
        return total, (final, ys)

    ours = quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, (final, ys)), grads = ours(params, jnp.asarray(xs), jax.tree.map(jnp.asarray, nested(initial)))

    assert_close(ys, torch_ys.detach().numpy(), tolerance)
    assert_close(final, nested({part: torch_final[part].detach().numpy() for part in parts}), tolerance)
    expected_params = [[from_torch(kind, layer, suffix, gradients=True) for suffix in row] for row in suffixes]
    assert_close(grads[0], expected_params, tolerance)
    assert_close(grads[1], torch_xs.grad.numpy(), tolerance)
    assert_close(grads[2], nested({part: torch_initial[part].grad.numpy() for part in parts}), tolerance)
    if padded:
        assert not np.any(np.asarray(grads[1])[0, 4:]), "padding has a gradient"


# ------------------------------------------------------------------------------------------------------------- Flax


def from_flax(cell):
    """THE MAPPING of the parameters of Flax's cells (or of their gradients, in a module) to ours.

    * Kernels are `[in, out]` in both, the gates in the same order: LSTM i, f, g, o; GRU r, z (our u), n.
    * LSTM: `LSTMCell` keeps one kernel a gate, `OptimizedLSTMCell` one for all, as we do. Its bias stands in `h*`.
    * GRU: Flax has no bias b_nh, which is 0.
    """
    if isinstance(cell, nnx.LSTMCell):
        inputs, recurrent = (cell.ii, cell.if_, cell.ig, cell.io), (cell.hi, cell.hf, cell.hg, cell.ho)
        return {
            "kernel": jnp.concatenate([gate.kernel[...] for gate in inputs], axis=-1),
            "recurrent_kernel": jnp.concatenate([gate.kernel[...] for gate in recurrent], axis=-1),
            "bias": jnp.concatenate([gate.bias[...] for gate in recurrent]),
        }
    bias = (cell.dense_h if isinstance(cell, nnx.OptimizedLSTMCell) else cell.dense_i).bias[...]
    if isinstance(cell, nnx.GRUCell):
        bias = jnp.concatenate([bias, jnp.zeros((cell.hidden_features,), bias.dtype)])
    return {"kernel": cell.dense_i.kernel[...], "recurrent_kernel": cell.dense_h.kernel[...], "bias": bias}


def check_against_flax(kind, flax_cell, **cell_arguments):
    """Asserts that Flax's cell under `nnx.RNN` and ours with its weights under `rnn_jax.RNN` agree.

    In outputs, final carry and every gradient, in float64.
    """
    theirs = make_cell(f"flax.nnx:{flax_cell}", 2, 4, seed=1)
    template = rnn_jax.make_cell(kind, 2, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64, **cell_arguments)
    xs, initial = normal(2, 3, 5, 2), random_carry(theirs, (3,), seed=3)
    ys_weight, final_weight = normal(5, 3, 5, 4), random_carry(theirs, (3,), seed=6)

    def loss(run, cell, xs, initial):
        final, ys = run(cell)(xs, initial_carry=initial, return_carry=True)
        pairs = zip(jax.tree.leaves(final), jax.tree.leaves(final_weight), strict=True)
        return jnp.sum(ys * ys_weight) + sum(jnp.sum(a * b) for a, b in pairs), (final, ys)

    def value_and_grad(run, cell):
        function = jax.value_and_grad(lambda *a: loss(run, *a), argnums=(0, 1, 2), has_aux=True)
        return quick_jit(function)(cell, xs, initial)

    (_, expected), expected_grads = value_and_grad(lambda cell: nnx.RNN(cell, rngs=False), theirs)
    (_, actual), grads = value_and_grad(rnn_jax.RNN, with_params(template, **from_flax(theirs)))

    assert_close(actual, expected)
    expected_params = from_flax(expected_grads[0])
    for name, expected_grad in expected_params.items():
        grad = getattr(grads[0], name)[...]
        if kind == "gru" and name == "bias":  # b_nh is ours alone
            grad, expected_grad = grad[:-4], expected_grad[:-4]
        assert_close(grad, expected_grad)
    assert_close(grads[1:], expected_grads[1:])


# ------------------------------------------------------------------------------------------------ a user-defined cell


class LeakyCell(nnx.RNNCellBase):
    """A cell as a user might write it: h_t = (1 - rate) h_{t-1} + rate tanh(x_t W), and it counts its steps."""

    def __init__(self, in_features, hidden_features, *, rate=0.5, param_dtype=jnp.float32, rngs):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.rate, self.param_dtype = rate, param_dtype
        kernel_init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, hidden_features), param_dtype))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        batch_shape = input_shape[:-1]
        h = jnp.zeros((*batch_shape, self.hidden_features), self.param_dtype)
        return {"h": h, "steps": jnp.zeros(batch_shape, jnp.int32)}

    def __call__(self, carry, x):
        h = (1.0 - self.rate) * carry["h"] + self.rate * jnp.tanh(x @ self.kernel[...])
        return {"h": h, "steps": carry["steps"] + jnp.int32(1)}, h

    @property
    def num_feature_axes(self):
        return 1


class LearnedStart(rnn_jax.ElmanCell):
    """An Elman cell that learns its first carry."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.start = nnx.Param(jnp.zeros((self.hidden_features,), self.param_dtype))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.broadcast_to(self.start[...], (*input_shape[:-1], self.hidden_features))


class LearnedStartOffTheFastPath(nnx.RNNCellBase):
    """The same, wrapped so that nobody can see that it is affine."""

    num_feature_axes = 1

    def __init__(self, *args, **kwargs):
        self.inner = LearnedStart(*args, **kwargs)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.inner.initialize_carry(input_shape)

    def __call__(self, carry, x):
        return self.inner(carry, x)


class PositionalCell(LeakyCell):
    """The same, with a constructor as most people write them: no star before the arguments that have a default."""

    def __init__(self, in_features, hidden_features, rate=0.5, param_dtype=jnp.float32, rngs=None):
        super().__init__(in_features, hidden_features, rate=rate, param_dtype=param_dtype, rngs=rngs)
