r"""Which network did best, over its seeds? A table and a figure of several runs of `experiments.train` on one task.

Runs that differ in nothing but --seed and --out make one row; nothing is computed again. --out may be any folder: what
it holds stays, but for the comparison.csv, .md and .png of an earlier comparison, which are replaced.

    python -m experiments.compare runs/language_id/*                                     (a second)
    python -m experiments.compare runs/language_id/* --baseline='TF-IDF of words=0.858' --out=docs
"""

import math
import pathlib

from absl import flags

from experiments import running
from rnn_jax.report import comparison
from rnn_jax.report.comparison_report import save_report

_BASELINE = flags.DEFINE_multi_string("baseline", [], "NAME=SCORE, measured elsewhere; may be repeated.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for report.html and comparison.csv, .md and .png; without it, the table is printed."
)


def main(argv: list[str]) -> None:
    baselines = dict(map(read_baseline, _BASELINE.value))
    compared = comparison.compare(argv[1:])
    out = None if _OUT.value is None else make_folder(_OUT.value)
    print(f"{compared.task}\n\n{comparison.markdown(compared, baselines)}", end="")
    if out is not None:
        print("\nLook at:")
        for path in save_report(out, compared, baselines):
            print(f"  {path}")


def make_folder(out: str) -> pathlib.Path:
    """Makes the folder of --out.

    Raises:
      ValueError: if that cannot be done.
    """
    folder = pathlib.Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out={out!r} cannot be made ({error.strerror}); allowed: a folder.") from error
    return folder


def read_baseline(text: str) -> tuple[str, float]:
    name, _, score = text.rpartition("=")
    try:
        if name and math.isfinite(float(score)):
            return name, float(score)
    except ValueError:
        pass
    raise ValueError(f"--baseline={text!r} is no score; allowed: NAME=SCORE, with a number.")


if __name__ == "__main__":
    running.run(main, takes_words=True)
