"""The instruments by name, as experiments run them over the networks of a run."""

import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments import running
from rnn_jax import flow, tasks
from rnn_jax.training import run_directory
from rnn_jax.training.ensemble import over_members
from rnn_jax.training.networks import load_networks, stages_of
from rnn_jax.training.watch import probe_batch
from rnn_jax.unroll.record import LayerCall

# (layer, quantity) -> array, of one network; "" is the whole network.
Quantities = dict[tuple[str, str], jax.Array]
Instrument = Callable[[tasks.Task, Any, tasks.Batch], Quantities]

# Sequences of the training split that are measured, where no other number is said: few where each costs much, many
# where a regression is fitted to them.
SEQUENCES = {"profile": 32, "jacobian": 2, "lyapunov": 8, "gates": 32, "truncation": 32, "memory": 128}


def _profile(task: tasks.Task, model: Any, batch: tasks.Batch) -> Quantities:
    calls: dict[str, LayerCall] = {}
    for layer, of_layer in flow.layer_calls(lambda recorded: task.loss(recorded, batch), model).items():
        calls |= dict(zip(flow.calls.call_names(layer, len(of_layer)), of_layer, strict=True))
    ragged = any(call.lengths is not None for call in calls.values())
    profile = flow.gradient_profile(task.loss, model, batch, shares=True, from_true_ends=ragged)
    found = {(layer, f"log10_norm {part}".strip()): norm for (layer, part), norm in profile.by_layer_and_part().items()}
    for layer, share in profile.log10_share.items():
        call = calls[layer]
        if call.reverse:
            share = jnp.flip(share)
        elif call.lengths is not None:  # a share is a sum over sequences: its lags count from the end of the longest
            share = jnp.roll(share, call.time - jnp.max(call.lengths))
        found[layer, "log10_share"] = share
    for layer, count in profile.sequences.items():
        found[layer, "sequences"] = jnp.flip(count) if layer in profile.reversed_parts else count
    return found


def _each_call(
    measure: Callable[[LayerCall], dict[str, jax.Array]], task: tasks.Task, model: Any, batch: tasks.Batch
) -> Quantities:
    """Measures every call of every layer; of several calls of a layer, each has a number behind its name, `rnn[0]`."""
    found: Quantities = {}
    for layer, calls in flow.layer_calls(lambda recorded: task.loss(recorded, batch), model).items():
        for name, call in zip(flow.calls.call_names(layer, len(calls)), calls, strict=True):
            found |= {(name, quantity): array for quantity, array in measure(call).items()}
    return found


def _jacobian(call: LayerCall) -> dict[str, jax.Array]:
    # Not from the first step on: from a carry of zeros, many cells lose directions in the first step.
    spectrum = flow.jacobian_spectrum(call, start=call.time // 4)
    return {
        name: getattr(spectrum, name)
        for name in ("lags", "log10_values", "spectral_radius", "from_orthogonal", "inside")
    }


def _lyapunov(call: LayerCall) -> dict[str, jax.Array]:
    spectrum = flow.lyapunov_spectrum(call, transient=call.time // 10)
    return {name: getattr(spectrum, name) for name in ("exponents", "standard_error", "dimension", "entropy_rate")}


def _gates(call: LayerCall) -> dict[str, jax.Array]:
    found = {}
    for gate, statistics in flow.gate_statistics(call).items():
        for name in ("mean", "low", "high", "time_constant"):
            if getattr(statistics, name) is not None:
                found[f"{gate} {name}"] = getattr(statistics, name)
    return found


def _memory(call: LayerCall) -> dict[str, jax.Array]:
    curve = flow.memory_curve(call)
    return {"lags": curve.lags, "fit": curve.fit, "capacity": curve.capacity}


def _truncation(task: tasks.Task, model: Any, batch: tasks.Batch) -> Quantities:
    bias, noise = flow.truncation_bias(task.loss, model, batch), flow.gradient_noise(task.loss, model, batch)
    found: Quantities = {}
    for layer in bias.cosine:
        found |= {(layer, "every"): bias.every, (layer, "cosine"): bias.cosine[layer]}
        found |= {(layer, "norm_ratio"): bias.norm_ratio[layer], (layer, "signal_to_noise"): noise.ratio[layer]}
        found |= {(layer, "noise_scale"): noise.noise_scale[layer]}
    return found


INSTRUMENTS: dict[str, Instrument] = {
    "profile": _profile,
    "jacobian": functools.partial(_each_call, _jacobian),
    "lyapunov": functools.partial(_each_call, _lyapunov),
    "gates": functools.partial(_each_call, _gates),
    "truncation": _truncation,
    "memory": functools.partial(_each_call, _memory),
}


def parse_instruments(names: Sequence[str]) -> list[str]:
    """Returns the names of instruments that a flag gives, each once.

    Raises:
      ValueError: one is unknown, or there is none.
    """
    known = ", ".join(INSTRUMENTS)
    for name in names:
        if name.strip() not in INSTRUMENTS:
            raise ValueError(f"--instruments={','.join(names)}: {name!r} is no instrument; allowed: {known}.")
    if not names:
        raise ValueError(f"--instruments= names none; allowed: {known}.")
    return list(dict.fromkeys(name.strip() for name in names))


def measure_trained(run_dir: pathlib.Path, names: Iterable[str]) -> None:
    """Measures the networks of a run that has just ended, at every stage; says why, where they cannot be measured."""
    try:
        measure_run(run_dir, names, stages_of(run_dir))
    except ValueError as error:
        running.say(f"Not measured: {error}")


def measure_run(
    run_dir: pathlib.Path, names: Iterable[str], stages: Iterable[str], sequences: int | None = None
) -> list[pathlib.Path]:
    """Measures the networks of a run, writes what each instrument showed, and returns the files.

    Args:
      run_dir: of the run.
      names: of the instruments.
      stages: as `rnn_jax.training.networks.load_networks` takes them.
      sequences: of the training split that are measured; by default `SEQUENCES` of each instrument.

    Raises:
      ValueError: the run has no networks to measure, or none has a recurrent layer; or as the instrument.
    """
    networks: dict[tuple[str, str], Any] = {}
    without: list[str] = []
    for stage in stages:
        task, of_stage = load_networks(run_dir, stage)
        for cell, models in of_stage.items():
            if flow.calls.layer_names(models):
                networks[cell, stage] = models
            elif repr(cell) not in without:
                without.append(repr(cell))
    if without and not networks:
        has = "has" if len(without) == 1 else "have"
        raise ValueError(
            f"--run={str(run_dir)!r}: {' and '.join(without)} {has} no recurrent layer; allowed: one that has."
        )
    if without:
        print(f"{' and '.join(without)}: left out, as it has no recurrent layer.", file=sys.stderr)
    paths = []
    names = list(names)
    bar = tqdm.tqdm(total=len(names) * len(networks), unit="network", disable=None)
    for name in names:
        bar.set_description(name)
        measure = functools.partial(_on, INSTRUMENTS[name], task, probe_batch(task, sequences or SEQUENCES[name]))
        over_all = over_members(measure)  # one program for networks that differ in their numbers alone
        found: dict[tuple[str, str, str, str], Any] = {}
        for (cell, stage), models in networks.items():
            quantities = over_all(models)
            _explain_nan(measure, models, quantities)
            found |= {(cell, stage, layer, quantity): array for (layer, quantity), array in quantities.items()}
            bar.update()
        if found:
            paths.append(run_directory.save_instrument(run_dir, name, found))
        else:
            print(f"{name}: there is nothing to measure, as no cell of the run names its gates.", file=sys.stderr)
    bar.close()
    return paths


def _on(instrument: Instrument, task: tasks.Task, batch: tasks.Batch, model: Any) -> Quantities:
    return instrument(task, model, batch)


def _explain_nan(measure: Callable[[Any], Quantities], models: Any, quantities: Quantities) -> None:
    """Where a lone network shows NaN, runs its instrument outside of jit, where it says what is wrong.

    A member of several that has diverged stays NaN, and the others are of use.

    Raises:
      ValueError: as the instrument.
    """
    floats = [array for array in quantities.values() if np.issubdtype(array.dtype, np.floating)]
    if any(len(array) == 1 and np.isnan(array).any() for array in floats):
        measure(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), models))
