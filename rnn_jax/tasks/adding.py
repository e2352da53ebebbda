"""The adding problem: two numbers, far apart in a sequence of noise, are marked; say their sum."""

import operator

import numpy as np

from rnn_jax.tasks import task

_FINGERPRINTED = 256  # examples of each split: each is a function of its number, so a few show any change


def adding(seq_len: int = 100, train_size: int = 100_000, test_size: int = 1_000, seed: int = 0) -> task.Task:
    """The adding problem, the oldest yardstick for memory over a known lag.

    "xs" is [T, 2]: at every step a value, uniform on [0, 1), and a marker, which is 1 at one step of the
    first half (steps 0 to T // 2 - 1), at one step of the second half, and 0 elsewhere. "target" is [1], the
    sum of the two marked values. For T = 4:

        value   0.9  0.2  0.7  0.4
        marker   0    1    1    0      target 0.2 + 0.7 = 0.9

    The first of the two must be carried over at least half the sequence, past unmarked values all the way.

    The trivial strategy always answers 1. The target is U + V with U and V independent and uniform on [0, 1),
    of mean 1/2 + 1/2 = 1 and variance 1/12 + 1/12 = 1/6, so a constant c has the mean squared error
    1/6 + (c - 1)^2: none does better than 1, and its score is 1/6 = 0.1667 (Le et al. print 0.1767).

    Hochreiter and Schmidhuber draw values from [-1, 1], the length at random, and both markers from the
    first half. Values and fixed length here are those of Le et al., a marker in each half is Arjovsky et al.

    No example is stored: example i of a split is computed from (seed, split, i) when it is asked for, and is
    the same on every machine and under every version of numpy.

    Args:
      seq_len: T, at least 2.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.

    Raises:
      ValueError: if an argument is out of range.

    References:
      S. Hochreiter, J. Schmidhuber (1997). Long short-term memory. Neural Computation 9(8).
      Q. V. Le, N. Jaitly, G. E. Hinton (2015). A simple way to initialize recurrent networks of rectified
        linear units. arXiv:1504.00941.
      M. Arjovsky, A. Shah, Y. Bengio (2016). Unitary evolution recurrent neural networks. arXiv:1511.06464.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len={seq_len} is out of range; allowed: 2 or more, one step for each marker.")
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        if size < 1:
            raise ValueError(f"{name}={size} is out of range; allowed: 1 or more.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is out of range; allowed: 0 to 2**64 - 1.")
    train = _AddingSource(seq_len, train_size, key=(seed, 0))
    test = _AddingSource(seq_len, test_size, key=(seed, 1))
    return task.Task(
        name="adding",
        description=f"The sum of the two marked numbers among {seq_len}.",
        source="Hochreiter and Schmidhuber 1997; Le, Jaitly, Hinton 2015, arXiv:1504.00941; "
        "Arjovsky, Shah, Bengio 2016, arXiv:1511.06464",
        train=train,
        test=test,
        seq_len=seq_len,
        in_features=2,
        out_features=1,
        loss=task.mean_squared_error,
        score=task.mean_squared_error,
        metric="mse",
        higher_is_better=False,
        trivial_score=1 / 6,
        fingerprint=task.fingerprint(train, test, ("numpy", "grain"), first=_FINGERPRINTED),
    )


class _AddingSource:
    """Examples of the adding problem, made on the spot.

    Philox is a random number generator with a counter: any block of its stream is one function call away, so
    example i takes the blocks whose counter has i in its highest word, and no two examples share one. Its raw
    integers are read rather than numpy's distributions, whose streams numpy may change between versions.
    """

    def __init__(self, seq_len: int, size: int, key: tuple[int, int]):
        self.lengths: np.ndarray | None = None
        self.seq_len = seq_len
        self.size = size
        self.key = np.array(key, np.uint64)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = operator.index(index)
        if not 0 <= index < self.size:
            raise IndexError(f"example {index} of {self.size}")
        half = self.seq_len // 2
        counter = np.array((0, 0, 0, index), np.uint64)
        bits = np.random.Philox(key=self.key, counter=counter).random_raw(self.seq_len + 2)
        first = int(bits[-2]) % half
        second = half + int(bits[-1]) % (self.seq_len - half)
        xs = np.zeros((self.seq_len, 2), np.float32)
        xs[:, 0] = bits[:-2] >> np.uint64(40)  # the upper 24 bits, as many as a float32 holds exactly
        xs[:, 0] *= np.float32(2**-24)
        xs[[first, second], 1] = 1
        return {"xs": xs, "target": xs[first, :1] + xs[second, :1]}
