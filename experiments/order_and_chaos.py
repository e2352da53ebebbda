r"""At which gain does a random tanh network become chaotic?

The network h' = tanh(g J h), with J_ij drawn from N(0, 1/N), runs free. Its largest Lyapunov exponent says whether a
small change dies out (negative) or grows (positive): the gradient vanishes below g = 1 and explodes above.

    python -m experiments.order_and_chaos                              (half a minute)
    python -m experiments.order_and_chaos --gains=0.9,0.95,1,1.05,1.1 --hidden=500 --seeds=10

It writes order_and_chaos.csv, a figure and report.html, beside the theory for N -> infinity:

    q = g^2 < tanh(sqrt(q) z)^2 >,    lambda = log(g^2 < tanh'(sqrt(q) z)^2 >) / 2,    z from N(0, 1).

References:
  Sompolinsky, Crisanti, Sommers 1988, "Chaos in random neural networks", Phys. Rev. Lett. 61(3).
  Molgedey, Schuchhardt, Schuster 1992, "Suppressing chaos in neural networks by noise", Phys. Rev. Lett. 69(26): the
    exponent in discrete time.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx

from experiments import running
from rnn_jax import flow
from rnn_jax.cells.elman import ElmanCell
from rnn_jax.flow.mean_field import mean_field_exponent
from rnn_jax.memory import check_memory
from rnn_jax.report.run_report import write_report
from rnn_jax.training import run_directory
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.estimate import device_memory

Array = jax.Array

_GAINS = flags.DEFINE_list(
    "gains", ["0.5", "0.7", "0.8", "0.9", "1", "1.1", "1.2", "1.3", "1.5", "1.75", "2", "2.5"], "Gains g, ascending."
)
_HIDDEN = flags.DEFINE_integer("hidden", 200, "N, units of the network.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 1000, "Steps over which growth is measured.", lower_bound=20)
_TRANSIENT = flags.DEFINE_integer("transient", 500, "Steps before them.", lower_bound=0)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Networks of each gain.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "The first seed.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/order_and_chaos-<time> by default.")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    gains = parse_gains(_GAINS.value)
    members = len(gains) * _SEEDS.value
    needed = 3 * 4 * members * _HIDDEN.value**2  # the matrices, as drawn, as scaled, and in the product
    check_memory(needed, device_memory(), gains=len(gains), seeds=_SEEDS.value, hidden=_HIDDEN.value)
    given, question = running.given_flags(__name__), __doc__.splitlines()[0]
    run_dir = run_directory.create(_OUT.value, given, experiment="order_and_chaos", question=question)

    seeds = range(_SEED.value, _SEED.value + _SEEDS.value)
    theory = {gain: mean_field_exponent(gain) for gain in gains}
    exponents_GS, errors_GS = measure(gains, seeds, _HIDDEN.value, _STEPS.value, _TRANSIENT.value)
    rows = [
        {
            "gain": gain,
            "seed": seed,
            "exponent": float(exponents_GS[g, s]),
            "standard_error": float(errors_GS[g, s]),
            "theory": theory[gain],
        }
        for g, gain in enumerate(gains)
        for s, seed in enumerate(seeds)
    ]
    run_directory.save_table(run_dir, rows, "order_and_chaos.csv")

    print(f"Largest Lyapunov exponent of tanh networks of {_HIDDEN.value} units, nats a step\n")
    print(f"{'gain':>8}{'median':>10}{'least':>10}{'largest':>10}{'theory':>10}")
    for gain, found in zip(gains, exponents_GS):
        numbers = (np.median(found), found.min(), found.max(), theory[gain])
        print(f"{gain:>8g}" + "".join(f"{number:>10.3f}" for number in numbers))
    *figures, report = write_report(run_dir)
    print(f"\nThe run directory is {run_dir}. Look at:")
    for path in (report, *figures, run_dir / "order_and_chaos.csv"):
        print(f"  {path}")


def parse_gains(texts: list[str]) -> list[float]:
    """Raises ValueError unless all are finite numbers above 0, each above the one before it."""
    try:
        gains = [float(text) for text in texts]
    except ValueError:
        gains = []
    if not gains or not all(0 < gain < math.inf for gain in gains) or gains != sorted(set(gains)):
        raise ValueError(f"--gains={','.join(texts)} is no list of gains; allowed: numbers above 0, ascending.")
    return gains


def measure(gains: list[float], seeds: range, hidden: int, steps: int, transient: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest exponent of each network and its standard error, `[gains, seeds]` each, nats a step.

    All gains of a seed have the same J and the same first state.
    """

    def one(gain: Array, seed: Array) -> tuple[Array, Array]:
        key, init = jax.random.key(seed), jax.nn.initializers.normal(1 / math.sqrt(hidden))
        cell = ElmanCell(1, hidden, recurrent_kernel_init=init, rngs=nnx.Rngs(key))
        assert cell.recurrent_kernel is not None
        cell.recurrent_kernel[...] = gain * cell.recurrent_kernel[...]
        carry = jax.random.normal(jax.random.fold_in(key, 1), (hidden,), jnp.float32)
        spectrum = flow.lyapunov_spectrum(cell, carry=carry, steps=transient + steps, k=1, transient=transient)
        return spectrum.exponents[0], spectrum.standard_error[0]

    over_seeds = jax.vmap(one, in_axes=(None, 0))
    run = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))
    found = run(jnp.asarray(gains, jnp.float32), jnp.asarray(seeds, jnp.uint32))
    exponents, errors = (np.asarray(array, np.float64) for array in found)
    return exponents, errors


if __name__ == "__main__":
    running.run(main)
