"""Handwritten digits, read pixel by pixel or row by row: real data that installs with scikit-learn, at any lag."""

import math
import os
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

from rnn_jax.memory import check_memory, host_memory
from rnn_jax.tasks import generated, prepared, task
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.sources import ArraySource

PIXELS = 64
PACKAGES = ("numpy", "grain", "scikit-learn", "tensorflow-datasets", "array-record")  # whose versions a run notes
_ROWS = 8  # of 8 pixels
_TEST_SIZE = 360
_SPLIT_SEED = 0


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """The 1,797 digits of scikit-learn, 8 x 8 pixels of 0 to 16, in 1,437 for training and 360 for testing.

    The split is drawn once and stratified: every class has its share, to within one example, in both parts.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "pixels": tfds.features.Tensor(shape=(PIXELS,), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        # A second of import that only the first preparation needs.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        rows = {}
        rows["train"], rows["test"] = train_test_split(
            np.arange(len(labels)), test_size=_TEST_SIZE, stratify=labels, random_state=_SPLIT_SEED
        )
        return {split: self._generate_examples(pixels, labels, rows[split]) for split in rows}

    def _generate_examples(self, pixels, labels, rows):
        for row in rows:
            yield int(row), {"pixels": pixels[row].astype(np.uint8), "label": int(labels[row])}


def digits(
    blanks: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    seq_len: int | None = None,
    test_seq_len: int | None = None,
    rows: bool | None = None,
) -> task.Task:
    """The digits of scikit-learn one pixel a step, then `blanks` steps of zeros; say which digit it was.

    "xs" is [64 + blanks, 1]: the 8 x 8 pixels row by row, divided by 16, with the zeros *behind* them, so
    that a classifier which reads the last step must carry all it has seen over at least `blanks` steps.
    With `rows` it is [8 + blanks, 8]: a row of pixels a step. "label" is 0 to 9.

    What to expect: logistic regression on all 64 pixels gets 96.7 % of this test split. The evidence is
    spread out, so a model that remembers only the end has a ceiling: given the last 8, 16, 32 or 48 pixels,
    the same classifier gets 50.0, 61.4, 84.4 or 94.7 %. The baseline answers the commonest class of
    the training split.

    The data are written to `data_dir` once, in about a second, and read from there into memory; any number of
    processes may be the first, and what a killed one has left is cleared away by the next.

    Args:
      blanks: zero steps behind the pixels; 0 by default.
      data_dir: folder for prepared data; None is `rnn_jax/tfds` in `$XDG_CACHE_HOME`, or else in `~/.cache`.
      seq_len: another way to say blanks: seq_len = 64 + blanks, or 8 + blanks with `rows`.
      test_seq_len: the same of the test split, which has other blanks then; None: as in training.
      rows: a row of pixels a step, or a pixel (the default).

    Raises:
      ValueError: if `blanks` is negative, or `seq_len` says something else.

    References:
      E. Alpaydin, C. Kaynak (1998). Optical recognition of handwritten digits. UCI Machine Learning
        Repository, https://doi.org/10.24432/C50P49. Its test set, as in `sklearn.datasets.load_digits`.
    """
    steps = _ROWS if rows else PIXELS  # of the image
    for name, length in (("seq_len", seq_len), ("test_seq_len", test_seq_len)):
        if length is not None and length < steps:
            raise ValueError(f"{name}={length} is out of range for the task 'digits'; allowed: {steps} or more.")
    if blanks is None:
        blanks = 0 if seq_len is None else seq_len - steps
    if blanks < 0:
        raise ValueError(f"blanks={blanks} is out of range; allowed: 0 or more.")
    if seq_len is not None and seq_len != steps + blanks:
        raise ValueError(
            f"seq_len={seq_len} and blanks={blanks} contradict each other:"
            f" for the task 'digits', seq_len = {steps} + blanks."
        )
    seq_len = steps + blanks
    arrays = load_splits(data_dir)
    train = _as_source(arrays["train"], steps, seq_len)
    test = _as_source(arrays["test"], steps, seq_len if test_seq_len is None else test_seq_len)
    commonest = np.bincount(train.arrays["label"]).argmax()
    return task.Task(
        name="digits",
        description=f"Which handwritten digit was read, {'row by row' if rows else 'pixel by pixel'}"
        + (f", {blanks} blank steps ago." if blanks else ".")
        + generated.tested_on(seq_len, test_seq_len),
        source="Alpaydin and Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49",
        license="not stated in scikit-learn's copy",
        train=train,
        test=test,
        kind=task.Kind.ONE_ANSWER,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        in_features=PIXELS // steps,
        out_features=10,
        loss=task.cross_entropy,
        score=task.accuracy,
        metric="accuracy",
        higher_is_better=True,
        baseline_score=float(np.mean(test.arrays["label"] == commonest)),
        fingerprint=fingerprint(train, test, PACKAGES),
    )


def _as_source(arrays: Mapping[str, np.ndarray], steps: int, seq_len: int) -> ArraySource:
    shape = (len(arrays["pixels"]), seq_len, PIXELS // steps)
    check_memory(4 * math.prod(shape), host_memory(), seq_len=seq_len)
    xs = np.zeros(shape, np.float32)
    xs[:, :steps] = (arrays["pixels"] / np.float32(16)).reshape(-1, steps, PIXELS // steps)
    return ArraySource(xs=xs, label=arrays["label"].astype(np.int32))


def load_splits(data_dir: str | os.PathLike[str] | None) -> dict[str, dict[str, np.ndarray]]:
    """Returns {"train", "test"}: {"pixels": uint8 [N, 64], "label": int64 [N]}."""
    examples = prepared.load(SklearnDigits, data_dir, ("train", "test"))
    return {
        split: {name: np.array([e[name] for e in examples[split]]) for name in ("pixels", "label")}
        for split in examples
    }
