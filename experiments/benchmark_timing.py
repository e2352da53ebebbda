"""How long contestants take: they are held against ours first, and then take turns."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments.benchmark_contestants import (
    OURS,
    Contestant,
    Key,
    as_numpy,
    build,
    contestants_of,
    difference,
    refusal,
    version_of,
)
from experiments.benchmark_peers import Workload, build_ours
from experiments.benchmark_results import Measurement, with_choice

_TURN_SECONDS = 0.02


def time_workload(
    w: Workload,
    libraries: Sequence[str],
    passes: Sequence[str],
    rounds: int,
    *,
    devices: int,
    product_rate: float,
    pauses: dict[str, float],
    bar: tqdm.tqdm,
) -> tuple[list[Measurement], list[str]]:
    """Holds everyone against ours, then times those who agree.

    Returns:
      The measurements, and a sentence for each contestant that was refused.
    """
    contestants: dict[Key, Contestant] = {}
    errors: dict[Key, float] = {}
    first_calls: dict[tuple[Key, str], float] = {}
    refusals: list[str] = []
    drawn = build_ours(w)
    for key in contestants_of(w, libraries, devices):
        contestant = build(w, key, drawn)
        first_calls[key, "forward"], outputs = timed(contestant.forward)
        first_calls[key, "gradient"], gradient = timed(contestant.gradient)
        results = [[as_numpy(outputs)], contestant.kernels(gradient)]
        if not contestants:  # ours
            ours = results
        differences = [difference(theirs, own) for theirs, own in zip(results, ours, strict=True)]
        sentence = refusal(w, key, *differences)
        if sentence is None:
            contestants[key], errors[key] = contestant, max(differences)
        else:
            refusals.append(sentence)
        del outputs, gradient, results

    measurements: list[Measurement] = []
    for name in passes:
        turns: dict[Key, Callable[[], Any]] = {key: getattr(c, name) for key, c in contestants.items()}
        calls = {}
        for key, turn in turns.items():
            if name == "step":
                first_calls[key, name] = timed(turn)[0]
            calls[key] = max(1, min(50, round(_TURN_SECONDS / timed(turn)[0])))
        seconds = race(turns, calls, rounds, pauses, bar)
        of_ours = min((values for key, values in seconds.items() if key[0] == OURS), key=np.median)
        rows = []
        for key, values in seconds.items():
            low, median, high = np.percentile(values, (25, 50, 75))
            ratio_low, ratio, ratio_high = np.percentile(values / of_ours, (25, 50, 75))
            rows.append(
                Measurement(
                    w,
                    name,
                    *key,
                    version_of(key[0]),
                    rounds=rounds,
                    calls=calls[key],
                    ms=1e3 * median,
                    ms_q25=1e3 * low,
                    ms_q75=1e3 * high,
                    ratio=ratio,
                    ratio_q25=ratio_low,
                    ratio_q75=ratio_high,
                    compile_s=None if key[0] == "torch" else first_calls[key, name] - median,
                    product_share=w.flop(name) / median / product_rate,
                    error=errors[key],
                )
            )
        measurements += with_choice(rows, lambda m: m.ratio)
    return measurements, refusals


def race(
    turns: dict[Key, Callable[[], Any]], calls: dict[Key, int], rounds: int, pauses: dict[str, float], bar: tqdm.tqdm
) -> dict[Key, np.ndarray]:
    """Lets all take turns, round after round, and returns the seconds a call took in each, `[rounds]`."""
    seconds = {key: np.zeros(rounds) for key in turns}
    for k in range(rounds):
        for key, turn in turns.items():
            start = time.perf_counter()
            for _ in range(calls[key]):
                turn()
            seconds[key][k] = (time.perf_counter() - start) / calls[key]
            time.sleep(pauses.get(key[0], 0.0))
        bar.update()
    return seconds


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def product_rate() -> float:
    """Returns the float32 operations a second of a 2048 x 2048 matrix product by JAX, the best of 5."""
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((2048, 2048), np.float32))
    product = jax.jit(jnp.dot)
    seconds = [timed(lambda: jax.block_until_ready(product(matrix, matrix)))[0] for _ in range(6)][1:]
    return 2 * 2048**3 / min(seconds)


_TORCH_ALONE = """
import time, torch
layers = [layer(32, 64, batch_first=True) for layer in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM)]
xs = torch.randn(32, 64, 32)
def turn():
    start = time.perf_counter()
    for layer in layers:
        layer(xs)[0].square().mean().backward()
    return time.perf_counter() - start
turn(), turn()
print(sorted(turn() for _ in range(15))[7])
"""


def choose_wait_policy(*, compare: bool) -> dict[str, Any]:
    """Decides how torch's threads wait, before torch is imported; see the docstring of `experiments.benchmark`.

    Returns:
      `policy`, and, if they were compared, the milliseconds of torch alone under each.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {"policy": os.environ["OMP_WAIT_POLICY"]}
    milliseconds: dict[str, float] = {}
    if compare:
        for policy in ("passive", "default") * 2:
            environment = {**os.environ, **({"OMP_WAIT_POLICY": policy} if policy == "passive" else {})}
            command = [sys.executable, "-c", _TORCH_ALONE]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            milliseconds[policy] = min(1e3 * float(done.stdout), milliseconds.get(policy, math.inf))
    policy = min(milliseconds, key=lambda name: milliseconds[name]) if milliseconds else "passive"
    if policy == "passive":
        os.environ["OMP_WAIT_POLICY"] = policy
    return {"policy": policy, "ms": milliseconds}
