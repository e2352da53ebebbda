r"""Which network did best, over its seeds? A table and a figure of several runs of `experiments.train` on one task.

Runs that differ in nothing but --seed and --out make one row; nothing is computed again.

    python -m experiments.compare runs/language_id/*                                     (a second)
    python -m experiments.compare runs/language_id/* --baseline='TF-IDF of words=0.858' --out=docs
"""

import sys

from absl import app, flags

from rnn_jax.report import comparison
from rnn_jax.report.comparison_report import save_report

_BASELINE = flags.DEFINE_multi_string("baseline", [], "NAME=SCORE, measured elsewhere; may be repeated.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for report.html and comparison.csv, .md and .png; without it, the table is printed."
)


def main(argv: list[str]) -> None:
    try:
        baselines = dict(map(read_baseline, _BASELINE.value))
        compared = comparison.compare(argv[1:])
    except ValueError as error:
        sys.exit(str(error))
    print(f"{compared.task}\n\n{comparison.markdown(compared, baselines)}", end="")
    if _OUT.value is not None:
        print("\nLook at:")
        for path in save_report(_OUT.value, compared, baselines):
            print(f"  {path}")


def read_baseline(text: str) -> tuple[str, float]:
    name, _, score = text.rpartition("=")
    try:
        if name:
            return name, float(score)
    except ValueError:
        pass
    raise ValueError(f"--baseline={text!r} is no score; allowed: NAME=SCORE, with a number.")


if __name__ == "__main__":
    app.run(main)
