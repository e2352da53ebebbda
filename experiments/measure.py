r"""What do the instruments show of the networks of a run?

Measures the networks of a finished run of experiments.train, experiments.gradient_flow or experiments.grid_lstm, as
they were trained or as they were drawn, or at a step on the way, on sequences of the training split: classifiers,
language models, encoder-decoders and captioners, each layer and each call of it by itself. They are measured as they
are tested: nothing is dropped out, a decoder is fed the true answer, hard attention reads by its expectation, and a
piece of a text begins with a carry of zeros.

    python -m experiments.measure --run=runs/mine                   (every instrument; 1 to 2 min on 2 CPU cores)
    python -m experiments.measure --run=runs/mine --instruments=jacobian,lyapunov --at=initialization,trained
    python -m experiments.measure --run=runs/mine --at=all          (on the way, too, where --instruments_every kept it)

It writes a file an instrument (jacobian.npz, ...) and the figures into the run directory, and makes report.html again.
"""

import pathlib

from absl import flags, logging

from experiments import running
from experiments.instruments import INSTRUMENTS, measure_run, parse_instruments
from rnn_jax.report.run_report import write_report
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.networks import STAGES_ALLOWED, is_stage, stages_of

_RUN = flags.DEFINE_string("run", None, "Run directory of experiments.train, gradient_flow or grid_lstm.")
_INSTRUMENTS = flags.DEFINE_list("instruments", list(INSTRUMENTS), f"Of {', '.join(INSTRUMENTS)}.")
_AT = flags.DEFINE_list("at", ["trained"], f"Which networks: {STAGES_ALLOWED}, or all.")
_SEQUENCES = flags.DEFINE_integer(
    "sequences", None, "Sequences that are measured; 2 to 128 by default, as the instrument needs.", lower_bound=1
)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    names = parse_instruments(_INSTRUMENTS.value)
    if _RUN.value is None:
        raise ValueError("--run is missing; allowed: a run directory of experiments.train, gradient_flow or grid_lstm.")
    stages = [stage.strip() for stage in _AT.value]
    if not stages or (stages != ["all"] and not all(map(is_stage, stages))):
        raise ValueError(f"--at={','.join(_AT.value)} is no choice of networks; allowed: {STAGES_ALLOWED}, or all.")
    run_dir = pathlib.Path(_RUN.value).expanduser()
    stages = stages_of(run_dir) if stages == ["all"] else stages
    paths = measure_run(run_dir, names, stages, _SEQUENCES.value)
    *figures, report = write_report(run_dir)
    print(f"The run directory is {run_dir}. Look at:")
    measured = [path for path in figures if path.stem.removesuffix("_training") in names]
    for path in (report, *measured, *paths):
        print(f"  {path}")


if __name__ == "__main__":
    running.run(main)
