r"""What does a run show so far? Its report.html and its figures, made again from the run directory alone.

    python -m experiments.report runs/mine              (seconds; also of a run that is in training or was killed)
    python -m experiments.report runs/*

Nothing is computed again. Every run writes its report at its end; several runs in one report: experiments.compare.
"""

from experiments import running
from rnn_jax.report.run_report import write_report


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise ValueError("there is no run to report on; allowed: one run directory or more.")
    for run_dir in argv[1:]:
        print(write_report(run_dir)[-1])


if __name__ == "__main__":
    running.run(main, takes_words=True)
