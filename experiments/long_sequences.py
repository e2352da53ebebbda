r"""What does a step cost in a very long sequence?

Takes the gradient of the last output, with the profile of every adjoint on its way back, for one sequence at several
lengths, and prints the time a step, the memory of the process, and how small the gradient has become at step 1.

    python -m experiments.long_sequences                                   (T = 1,000 to 1,000,000; 1 min, 2 CPU cores)
    python -m experiments.long_sequences --cell=gru --hidden=128 --lengths=1000,100000
"""

import math
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags, logging
from flax import nnx

import rnn_jax
from experiments import running
from rnn_jax import flow
from rnn_jax.memory import check_memory
from rnn_jax.report.run_report import write_report
from rnn_jax.training import run_directory
from rnn_jax.training.estimate import bytes_of, device_memory, kept_for_gradient, shapes_of

_CELL = flags.DEFINE_string(
    "cell", "lstm", "A name of the catalogue or path.to.module:Class, with arguments if wanted."
)
_LENGTHS = flags.DEFINE_list("lengths", ["1000", "10000", "100000", "1000000"], "Steps of the sequences, ascending.")
_IN_FEATURES = flags.DEFINE_integer("in_features", 3, "Size of the input.", lower_bound=1)
_HIDDEN = flags.DEFINE_integer("hidden", 64, "Hidden features.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences in a batch.", lower_bound=1)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every",
    None,
    "Keep only every so many-th carry; 0 keeps all, by default as rnn_jax.unroll.",
    lower_bound=0,
)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/long_sequences-<time> by default.")

_TURN_SECONDS = 0.5
_TURNS = 5


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX tells which devices it looked for
    lengths = parse_lengths(_LENGTHS.value)

    def make_layer() -> rnn_jax.RNN:
        every = _CHECKPOINT_EVERY.value
        gradient = None if every is None else rnn_jax.Checkpointed(every) if every else rnn_jax.Whole()
        cell = rnn_jax.make_cell(_CELL.value, _IN_FEATURES.value, _HIDDEN.value, rngs=nnx.Rngs(0))
        return rnn_jax.RNN(cell, gradient=gradient)

    check_sizes(shapes_of(make_layer), lengths[-1])
    given, question = running.given_flags(__name__), __doc__.splitlines()[0]
    run_dir = run_directory.create(_OUT.value, given, experiment="long_sequences", question=question)
    layer = make_layer()

    rows = []
    for length in tqdm.tqdm(lengths, unit="length", disable=None):
        rows.append(measure(layer, length))
        run_directory.save_table(run_dir, rows, "long_sequences.csv")

    print(f"{_CELL.value}, {_HIDDEN.value} hidden features, batch {_BATCH.value}: gradient and profile\n")
    print(f"{'steps':>12}{'microseconds a step':>22}{'of the first':>14}{'peak GB':>10}{'log10 |a_1|':>14}")
    for row in rows:
        ratio = row["microseconds_a_step"] / rows[0]["microseconds_a_step"]
        print(
            f"{row['steps']:>12,}{row['microseconds_a_step']:>22.2f}{ratio:>14.2f}"
            f"{row['peak_bytes'] / 1e9:>10.2f}{row['log10_adjoint_1']:>14.1f}"
        )
    print(f"\nWritten: {run_dir / 'long_sequences.csv'}, {write_report(run_dir)[-1]}")


def parse_lengths(texts: list[str]) -> list[int]:
    """Raises ValueError unless all are numbers of steps, each above the one before it."""
    lengths = [int(text) if text.strip().isdecimal() else 0 for text in texts]
    if not lengths or lengths[0] < 2 or lengths != sorted(set(lengths)):
        raise ValueError(
            f"--lengths={','.join(texts)} is no list of lengths; allowed: whole numbers from 2 up, ascending."
        )
    return lengths


def check_sizes(layer: rnn_jax.RNN, length: int) -> None:
    """Raises ValueError if the memory does not suffice for the longest sequence, or as a step of the cell."""
    shape = (_BATCH.value, length, _IN_FEATURES.value)
    told = {"hidden": _HIDDEN.value, "batch": _BATCH.value, "in_features": _IN_FEATURES.value, "lengths": length}
    needed = 4 * math.prod(shape) + 2 * bytes_of(layer)
    check_memory(needed, device_memory(), **told)
    needed += kept_for_gradient(last_output, layer, jax.ShapeDtypeStruct(shape, jnp.float32))
    check_memory(needed, device_memory(), **told)


def last_output(layer: rnn_jax.RNN, xs: jax.Array) -> jax.Array:
    """The loss: the mean square of the last output."""
    return jnp.mean(layer(xs)[:, -1] ** 2)


def measure(layer: rnn_jax.RNN, length: int) -> dict[str, float]:
    """Returns a row of the table for one length; memory is the most that the process has held up to here."""

    @jax.jit
    def run(layer: rnn_jax.RNN, xs: jax.Array) -> flow.GradientProfile:
        return flow.gradient_profile(last_output, layer, xs)

    xs = jax.random.normal(jax.random.key(0), (_BATCH.value, length, _IN_FEATURES.value))
    profile = jax.block_until_ready(run(layer, xs))
    start = time.perf_counter()
    jax.block_until_ready(run(layer, xs))
    calls = max(1, int(_TURN_SECONDS / (time.perf_counter() - start)))
    seconds = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(run(layer, xs))
        seconds.append((time.perf_counter() - start) / calls)
    log10_norm = np.asarray(profile.log10_norm["rnn"])
    if np.isnan(log10_norm).any():
        sys.exit(f"the profile of {length} steps holds NaN")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "steps": length,
        "microseconds_a_step": 1e6 * float(np.median(seconds)) / length,
        "peak_bytes": peak if sys.platform == "darwin" else 1024 * peak,
        "log10_adjoint_1": float(log10_norm[0]),
    }


if __name__ == "__main__":
    running.run(main)
