"""Instruments against one brute force: on every kind of cell, and in both directions with lengths and resets.

The brute force is a loop over the steps of one example, in float64, with a copy of the cell for each step and zeros
added to the carry, before the first step and behind each. One `jax.grad` has every adjoint, what each step adds to the
gradient of the parameters, and, with the gradient stopped where a piece begins, what it adds to the truncated one.
Statistics of gates and the ridge regression are NumPy's. Sequences of a layer that runs in reverse are turned by hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import RNN, Bidirectional, flow
from rnn_jax.cell import gate_values
from tests import reference

B, T, F, H = 5, 4, 2, 3
EVERY = (2, 3)
MEMORY = {"lags": (0, 2), "ridge": 0.1}
BOTH = "both directions"
REVERSED = ("both/backward_rnn", "back")
# Those of our own catalogue run in the layers of both directions, or as these others do.
SLOW = ("elman", "lstm", "gru", "gru_reset_before")
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*reference.REPRESENTATIVE, BOTH)]
LENGTHS, RESETS = np.array([4, 3, 4, 2, 4]), np.zeros((B, T), bool)
RESETS[[0, 2], [3, 1]] = True


def floating(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def with_floating(tree, leaves):
    new = iter(leaves)
    return jax.tree.map(lambda leaf: next(new) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, tree)


@functools.partial(reference.quick_jit)
def brute_force(cell, xs, contexts, resets, active, cuts, weights):
    """Runs examples in the order of the run.

    Returns:
      for each cut and example what a step adds to the gradient of the parameters, `[cuts, B, T, ...]`; the adjoints
      behind each step and of the first carry, `[cuts, B, T + 1, ...]`; carries and gates.

    Args:
      cell: any cell.
      xs, resets, active, weights: `[B, T, ...]`, turned.
      contexts: `[B, ...]`, or None.
      cuts: bool `[cuts, B, T]`: where no gradient flows to the step before.
    """
    fresh = cell.initialize_carry((F,), nnx.Rngs(0))

    def of_example(x, context, reset, alive, cut, weight):
        def loss(parameters, zeros):
            carry = with_floating(fresh, [part + zero for part, zero in zip(floating(fresh), zeros[T], strict=True)])
            total, seen = 0.0, []
            for t in range(T):
                before = [jnp.where(cut[t], jax.lax.stop_gradient(part), part) for part in floating(carry)]
                carry = with_floating(carry, before)
                carry = jax.tree.map(lambda new, old, t=t: jnp.where(reset[t], new, old), fresh, carry)
                of_gates = gate_values(cell, carry, x[t], context=context) if names_gates(cell) else {}
                new, y = rnn_jax.step(with_floating(cell, parameters[t]), carry, x[t], context=context)
                new = with_floating(new, [part + zero for part, zero in zip(floating(new), zeros[t], strict=True)])
                carry = jax.tree.map(lambda new, old, t=t: jnp.where(alive[t], new, old), new, carry)
                total += jnp.where(alive[t], jnp.sum(weight[t] * jnp.cos(y)), 0.0)
                seen.append((jnp.concatenate([part.ravel() for part in floating(carry)]), of_gates))
            return total, jax.tree.map(lambda *parts: jnp.stack(parts), *seen)

        zeros = [jax.tree.map(jnp.zeros_like, floating(fresh))] * (T + 1)
        grads, seen = jax.grad(loss, (0, 1), has_aux=True)([floating(cell)] * T, zeros)
        return *(jnp.stack([jnp.concatenate([g.ravel() for g in step]) for step in steps]) for steps in grads), seen

    of_batch = jax.vmap(of_example, (0, None if contexts is None else 0, 0, 0, 0, 0))
    return jax.vmap(of_batch, (None, None, None, None, 0, None))(xs, contexts, resets, active, cuts, weights)


def names_gates(cell):
    return isinstance(cell, rnn_jax.Cell) and type(cell).gates is not rnn_jax.Cell.gates


def turned(array, lengths):
    """The steps of each sequence from its own last one to the first, padding behind them."""
    rows = [np.concatenate([row[:length][::-1], row[length:]]) for row, length in zip(array, lengths, strict=True)]
    return np.stack(rows)


@functools.cache
def case(name):
    """Returns what the instruments found and the truth, by layer."""
    xs, weights, context = (np.asarray(reference.normal(seed, B, T, F * k)) for seed, k in ((2, 1), (3, 5), (4, 1)))
    lengths = LENGTHS if name == BOTH else np.full(B, T)
    if name == BOTH:
        kinds = {"both/forward_rnn": "elman", "both/backward_rnn": "gru", "back": "elman"}
        cells = {layer: reference.make_cell(kind, F, H, seed=k) for k, (layer, kind) in enumerate(kinds.items(), 1)}
    else:
        cells = {"rnn": reference.make_cell(name, F, H, seed=1)}
    attends = name.endswith("AttendingCell")
    context = np.concatenate([context, xs[:, :1]], axis=1) if attends else None
    alive = np.arange(T) < lengths[:, None]
    weights = np.where(alive[..., None], weights[..., : H * len(cells)], 0.0)

    def outputs(model, xs, context, lengths, resets):
        if name != BOTH:
            return model(xs, **({"context": context} if attends else {}))
        ahead_and_back = model["both"](xs, seq_lengths=lengths)
        return jnp.concatenate([ahead_and_back, model["back"](xs, seq_lengths=lengths, resets=resets)], axis=-1)

    def loss(model, xs, context, lengths, resets, weights):
        return jnp.mean(jnp.sum(weights * jnp.cos(outputs(model, xs, context, lengths, resets)), axis=(1, 2)))

    @reference.quick_jit
    def measure(model, *args):
        calls = flow.layer_calls(lambda model: outputs(model, *args[:-1]), model)
        of_calls = {
            layer: (flow.gate_statistics(call), flow.memory_curve(call, **MEMORY)) for layer, (call,) in calls.items()
        }
        profile = flow.gradient_profile(loss, model, *args, shares=True)
        bias = flow.truncation_bias(loss, model, *args, every=EVERY)
        return profile, bias, flow.gradient_noise(loss, model, *args), of_calls

    layers = [RNN(cell) for cell in cells.values()]
    model = (
        {"both": Bidirectional(*layers[:2]), "back": RNN(cells["back"], reverse=True, keep_order=True)}
        if name == BOTH
        else layers[0]
    )
    found = measure(model, *map(jnp.asarray, (xs, xs if context is None else context, lengths, RESETS, weights)))
    truth = {}
    for k, (layer, cell) in enumerate(cells.items()):
        reverse, resets = layer in REVERSED, RESETS if layer == "back" else np.zeros((B, T), bool)
        turn = functools.partial(turned, lengths=lengths) if reverse else np.asarray
        steps = np.arange(T) + reverse
        cut = [np.zeros((B, T), bool), *(np.tile((steps % every == 0) & (steps % T != 0), (B, 1)) for every in EVERY)]
        grads, (adjoints, *_), (carries, gates) = brute_force(
            cell, turn(xs), context, turn(resets), alive, np.stack([turn(one) for one in cut]),
            turn(weights[..., k * H : (k + 1) * H]),
        )  # fmt: skip
        truth[layer] = {
            "cell": cell,
            "grads": np.stack([turn(of_cut) for of_cut in np.asarray(grads)]) / B,  # [cuts, B, T, parameters]
            # Padding comes before the run of a layer in reverse: there, the first carry is handed on.
            "adjoints": np.where(alive[..., None] | (not reverse), turn(adjoints[:, :T]), adjoints[:, T:]) / B,
            "xs": turn(xs),
            "resets": turn(resets),
            "carries": np.asarray(carries[0]),  # in the order of the run
            "gates": jax.tree.map(lambda values: np.asarray(values[0]), gates),
            "alive": alive,
        }
    return *found, truth


def of_layers(truth):
    """Returns the gradients of each cut and example, `[cuts, B, parameters]`, by layer and of the whole."""
    by_layer = {layer: of["grads"].sum(axis=2) for layer, of in truth.items()}
    return by_layer | {"": np.concatenate(list(by_layer.values()), axis=-1)}


@pytest.mark.parametrize("name", CASES)
def test_profile_and_shares_are_the_adjoint_and_the_gradient_of_each_step(name):
    profile, *_, truth = case(name)
    for layer, of in truth.items():
        norms = np.sqrt(np.mean(np.sum(of["adjoints"] ** 2, axis=-1), axis=0))
        reference.assert_log10_of(profile.log10_norm[layer], norms)
        reference.assert_log10_of(profile.log10_share[layer], np.linalg.norm(of["grads"][0].sum(axis=0), axis=-1))
        by_lag = norms if layer in REVERSED else norms[::-1]
        horizon = flow.horizon(profile.log10_norm[layer], reverse=layer in REVERSED)
        for share, lag in ((np.exp(-1), horizon.lag_e), (1e-3, horizon.lag_1000)):
            assert lag == max(k + 1 for k in range(T) if by_lag[k] >= share * max(by_lag))


@pytest.mark.parametrize("name", CASES)
def test_the_bias_of_truncation_is_that_of_gradients_stopped_at_each_piece(name):
    _, bias, _, _, truth = case(name)
    for layer, grads in of_layers(truth).items():
        whole, *truncated = grads.sum(axis=1)
        for k, g in enumerate(truncated):
            ratio = np.linalg.norm(g) / np.linalg.norm(whole)
            np.testing.assert_allclose(bias.norm_ratio[layer][k], ratio, rtol=1e-6)
            cosine = g @ whole / np.linalg.norm(g) / np.linalg.norm(whole)
            np.testing.assert_allclose(bias.cosine[layer][k], cosine, rtol=1e-6)
    assert np.min(bias.cosine[""]) < 0.9999


@pytest.mark.parametrize("name", CASES)
def test_gradient_noise_is_that_of_one_gradient_for_each_example(name):
    _, _, noise, _, truth = case(name)
    for layer, grads in of_layers(truth).items():
        rows = B * grads[0]
        signal, variance = np.linalg.norm(rows.mean(axis=0)), np.sum(rows.var(axis=0, ddof=1))
        np.testing.assert_allclose(noise.signal[layer], signal, rtol=1e-6)
        np.testing.assert_allclose(noise.noise[layer], np.sqrt(variance), rtol=1e-6)
        np.testing.assert_allclose(noise.ratio[layer], signal / np.sqrt(variance / B), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gate_statistics_are_those_of_a_loop_over_steps(name):
    *_, of_calls, truth = case(name)
    for layer, of in truth.items():
        found, cell = of_calls[layer][0], of["cell"]
        assert set(found) == set(of["gates"])
        assert bool(found) == names_gates(cell)
        for gate, values in of["gates"].items():
            statistics, low_high = found[gate], cell.gate_ranges.get(gate)
            rows = [values[of["alive"][:, t], t] for t in range(T)]
            np.testing.assert_allclose(statistics.mean, [np.mean(row) for row in rows], rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(statistics.std, [np.std(row) for row in rows], rtol=1e-6, atol=1e-12)
            every = np.concatenate(rows)
            np.testing.assert_allclose(statistics.unit_mean, every.mean(axis=0), rtol=1e-6, atol=1e-12)
            if low_high is not None:
                low, high = low_high
                np.testing.assert_allclose(statistics.low, [np.mean(row < low + 0.05) for row in rows], atol=1e-12)
                np.testing.assert_allclose(statistics.high, [np.mean(row > high - 0.05) for row in rows], atol=1e-12)
            if statistics.time_constant is not None:
                np.testing.assert_allclose(statistics.time_constant, -1 / np.log(every).mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_memory_curve_is_the_ridge_regression_in_closed_form(name):
    *_, of_calls, truth = case(name)
    for layer, of in truth.items():
        curve, last = of_calls[layer][1], max(MEMORY["lags"])
        places = []  # (example, step) with as many steps of its sequence before it as the largest lag
        for b in range(B):
            age = -1
            for t in range(T):
                age = 0 if of["resets"][b, t] else age + 1
                if of["alive"][b, t] and age >= last:
                    places.append((b, t))
        fitted, scored = ([place for place in places if (place[0] == B - 1) == held] for held in (False, True))
        states = [np.array([of["carries"][place] for place in rows]) for rows in (fitted, scored)]
        mean = states[0].mean(axis=0)
        X, X_scored = (rows - mean for rows in states)
        penalty = MEMORY["ridge"] * np.sum(X**2) / X.shape[-1]
        for k, lag in enumerate(MEMORY["lags"]):
            y, y_scored = (np.array([of["xs"][b, t - lag] for b, t in rows]) for rows in (fitted, scored))
            weights = np.linalg.solve(X.T @ X + penalty * np.eye(X.shape[-1]), X.T @ (y - y.mean(axis=0)))
            error = np.sum((y_scored - y.mean(axis=0) - X_scored @ weights) ** 2, axis=0)
            fit = 1 - error / np.sum((y_scored - y_scored.mean(axis=0)) ** 2, axis=0)
            np.testing.assert_allclose(curve.fit[k], fit, rtol=1e-6, atol=1e-9)


def test_what_is_no_cell_and_what_is_no_number_is_refused_by_every_instrument():
    cell = reference.make_cell("gru", F, H)
    layer, xs = RNN(cell), reference.normal(2, B, T, F)
    bad = xs.at[1, 3].set(jnp.nan)
    (call,) = flow.layer_calls(lambda layer: layer(bad), layer)["rnn"]
    ys = jnp.ones((B, T, H))
    of_cells = [flow.jacobian_spectrum, flow.lyapunov_spectrum, flow.gate_statistics, flow.memory_curve]
    of_cells += [flow.signal_spread, functools.partial(flow.adjoints, ys_cotangent=ys)]
    for measure in of_cells:
        for wrong in (layer, [layer], nnx.Linear(F, H, rngs=nnx.Rngs(0))):
            kind = type(wrong).__name__
            with pytest.raises(
                ValueError, match=rf"^cell is a {kind}; allowed: a recurrent cell, or the record of one"
            ):
                measure(wrong, xs=xs)
        with pytest.raises(ValueError, match=r"the input of layer 'rnn' is not finite at time step 3 of example 1;"):
            measure(cell, xs=bad)
    of_calls = (flow.states, flow.gate_saturation, functools.partial(flow.connectivity, ys_cotangent=ys, window=2))
    for measure in of_calls:
        with pytest.raises(ValueError, match=r"the input of layer 'rnn' is not finite at time step 3 of example 1;"):
            measure(call)
    with pytest.raises(
        ValueError, match=r"^cell is a dict; allowed: .* flow\.layer_calls\(function, model\)\[layer\]\[0\]\.$"
    ):
        flow.lyapunov_spectrum({"rnn": [call]}, steps=3)
    for loss, said in (
        (lambda model, xs: model(xs), r"loss_fn returned float64\[5, 4, 3\]; allowed: a floating-point scalar\."),
        (lambda model, xs: jnp.sum(model(xs)), r"the input of layer 'rnn' is not finite at time step 3 of example 1;"),
    ):
        with pytest.raises(ValueError, match=said):
            flow.grid_profile(loss, layer, bad)
