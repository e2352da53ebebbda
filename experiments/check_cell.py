r"""Does a cell keep the contract that everything on this bench relies on?

Runs the conformance kit, `rnn_jax.flow.check_cell`, and prints a line for each check: ok, FAIL, n/a where it does not
apply, or exempt where the cell says so in `check_exemptions`. A check that relies on a failed one is not run. The exit
status is 0 if no check failed, else 1. What a check allows stands in rnn_jax/flow/conformance/.

    python -m experiments.check_cell --cell=lstm                                           (15 s on 2 CPU cores)
    python -m experiments.check_cell --cell='gru(chrono=100)' --hidden=16 --seed=1
    python -m experiments.check_cell --cell=my.module:MyCell
"""

import sys

from absl import flags, logging
from flax import nnx

import rnn_jax
from experiments import running
from rnn_jax import flow
from rnn_jax.memory import check_memory, host_memory
from rnn_jax.training.estimate import bytes_of, shapes_of

_CELL = flags.DEFINE_string(
    "cell", None, "A name of the catalogue or path.to.module:Class, with arguments if wanted.", required=True
)
_IN_FEATURES = flags.DEFINE_integer("in_features", 3, "Size of the input.", lower_bound=1)
_HIDDEN = flags.DEFINE_integer("hidden", 5, "Hidden features.", lower_bound=1)
_COPIES = 20  # of the parameters, at the least: in float64, drawn anew, moved, and their gradients
_SEED = flags.DEFINE_integer("seed", 0, "Of parameters and inputs.", lower_bound=0)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX tells which devices it looked for
    check_memory(_COPIES * bytes_of_cell(), host_memory(), hidden=_HIDDEN.value, in_features=_IN_FEATURES.value)
    report = flow.check_cell(
        _CELL.value, in_features=_IN_FEATURES.value, hidden_features=_HIDDEN.value, seed=_SEED.value
    )
    print(report)
    sys.exit(0 if report.passed else 1)


def bytes_of_cell() -> int:
    """Returns the bytes of a cell of these sizes, without building it."""
    sizes = (_IN_FEATURES.value, _HIDDEN.value)
    return bytes_of(shapes_of(lambda: rnn_jax.make_cell(_CELL.value, *sizes, rngs=nnx.Rngs(0))))


if __name__ == "__main__":
    running.run(main)
