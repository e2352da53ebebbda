"""Moving digits: a video of a handwritten digit of which every frame shows a half. A task whose sequence is images."""

import functools
import os

import numpy as np

from rnn_jax.tasks import generated, task
from rnn_jax.tasks.digits import PACKAGES, load_splits
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.splits import stratified_split

_SIDE, _DIGIT = 16, 8  # pixels of a frame and of a digit
_FREE = _SIDE - _DIGIT  # the largest offset of a digit in a frame
_SPEEDS = np.array([-2, -1, 1, 2])  # pixels a step
_VALIDATION = {"validation": 0.2}  # of the training digits
_SPLIT_SEED = 0
_DRAWS = 5  # which digit, two offsets, two speeds; and one for each frame


def moving_digits(
    seq_len: int = 12,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> task.Task:
    """A digit of scikit-learn moves through a frame of 16 x 16 pixels and bounces at its walls; say which digit it is.

    "xs" is [T, 16, 16, 1]: rows, columns and one channel of T frames, pixels 0 to 1. Somewhere in a frame stand the
    8 x 8 pixels of the digit. It begins at an offset uniform on 0 to 8 pixels from the top, and another from the left,
    and moves in both directions with a constant speed, -2, -1, 1 or 2 pixels a step, which changes its sign at a wall.
    Each frame shows each pixel of the digit with probability 1/2, drawn again for every pixel and frame, and has 0 in
    its place otherwise. "label" is 0 to 9. Which digit it is, how it moves and what is shown depend on the seed and
    the number of the example alone.

    A frame shows half of the digit, and all frames together nearly all of it, but at other places: a network has to
    follow the digit, and to put together what it sees.

    The test split has the 360 test digits of the task 'digits', the validation split a fifth of every class of the
    1,437 training digits, and the training split the others. No digit is in two splits.

    What to expect: logistic regression on the last frame, fitted to 3,000 sequences, gets 12 % of the test split, no
    better than chance, as the digit may stand anywhere. On half of a digit at a known place it gets 73 %, on the
    whole digit 97 %: that is what a network gains that follows the digit, and what it gains from all frames. The
    baseline answers the commonest class of the training split, and gets 10.8 %.

    Srivastava et al. have two digits of MNIST in a frame of 64 x 64 pixels, shown whole, and ask for the next frames.

    Args:
      seq_len: T, 1 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.
      data_dir: folder for prepared data; None is `rnn_jax/tfds` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Raises:
      ValueError: if an argument is out of range.

    References:
      N. Srivastava, E. Mansimov, R. Salakhutdinov (2015). Unsupervised learning of video representations using LSTMs.
        arXiv:1502.04681. Moving MNIST.
      E. Alpaydin, C. Kaynak (1998). Optical recognition of handwritten digits. UCI Machine Learning
        Repository, https://doi.org/10.24432/C50P49.
    """
    generated.check_lengths(seq_len, test_seq_len, 1)
    generated.check_sizes(train_size, test_size, seed)
    arrays = load_splits(data_dir)
    known = arrays["train"]
    members = stratified_split(known["label"], "0123456789", _VALIDATION, _SPLIT_SEED)
    digits = {split: {name: array[of_split] for name, array in known.items()} for split, of_split in members.items()}
    digits["test"] = arrays["test"]

    def source(split: str, key: int, steps: int, size: int) -> generated.GeneratedSource:
        images = (digits[split]["pixels"] / np.float32(16)).reshape(-1, _DIGIT, _DIGIT)
        example = functools.partial(_moving_digit, images, digits[split]["label"].astype(np.int32))
        return generated.GeneratedSource(example, _DRAWS + steps, size, (seed, key))

    train = source("train", generated.TRAIN, seq_len, train_size)
    test = source("test", generated.TEST, seq_len if test_seq_len is None else test_seq_len, test_size)
    commonest = np.bincount(digits["train"]["label"]).argmax()
    return task.Task(
        name="moving_digits",
        description="Which handwritten digit moves about, half of it shown in each frame."
        + generated.tested_on(seq_len, test_seq_len),
        source="Alpaydin and Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49, moved as in Srivastava,"
        " Mansimov, Salakhutdinov 2015, arXiv:1502.04681",
        license="not stated in scikit-learn's copy",
        train=train,
        validation=source("validation", generated.VALIDATION, seq_len, test_size),
        test=test,
        kind=task.Kind.ONE_ANSWER,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        in_features=(_SIDE, _SIDE, 1),
        out_features=10,
        baseline_score=float(np.mean([test[number]["label"] == commonest for number in range(test_size)])),
        fingerprint=fingerprint(train, test, PACKAGES, first=generated.FINGERPRINTED),
        **generated.CLASSES,
    )


def _moving_digit(images: np.ndarray, labels: np.ndarray, bits: np.ndarray) -> dict[str, np.ndarray]:
    number = int(bits[0]) % len(images)
    begin, speed = generated.integers(bits[1:3], _FREE + 1), _SPEEDS[generated.integers(bits[3:_DRAWS], len(_SPEEDS))]
    steps = np.arange(len(bits) - _DRAWS)
    # A path between two walls is one without walls, folded: it goes there and back in 2 _FREE pixels.
    offsets = _FREE - abs((begin + speed * steps[:, None]) % (2 * _FREE) - _FREE)
    # The 64 bits of an integer say which of the 64 pixels a frame shows.
    shown = (bits[_DRAWS:, None] >> np.arange(_DIGIT * _DIGIT, dtype=np.uint64)) & np.uint64(1)
    pixels = images[number] * shown.reshape(-1, _DIGIT, _DIGIT).astype(np.float32)
    xs = np.zeros((len(steps), _SIDE, _SIDE, 1), np.float32)
    for frame, digit, (row, column) in zip(xs, pixels, offsets):
        frame[row : row + _DIGIT, column : column + _DIGIT, 0] = digit
    return {"xs": xs, "label": labels[number, ...]}
