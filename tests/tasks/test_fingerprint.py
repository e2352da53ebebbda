"""Claims about the fingerprint of a task's data."""

import numpy as np

from rnn_jax import tasks
from rnn_jax.tasks.fingerprint import fingerprint


def test_a_fingerprint_shows_any_change_of_content():
    label = np.arange(10, dtype=np.int32)
    source = tasks.ArraySource(xs=np.tile(label[:, None, None].astype(np.float32), (1, 3, 1)), label=label)

    def digest(**changed):
        arrays = {name: array.copy() for name, array in source.arrays.items()} | changed
        return fingerprint(tasks.ArraySource(**arrays), source, ())["train_sha256"]

    one_value = source.arrays["xs"].copy()
    one_value[-1, -1] += 1
    same_bytes_other_dtype = source.arrays["label"].view(np.uint32)
    digests = [
        digest(),
        digest(xs=one_value),
        digest(label=same_bytes_other_dtype),
        digest(xs=source.arrays["xs"][::-1].copy()),
    ]
    assert len(set(digests)) == len(digests)
    assert digest() == fingerprint(source, source, ())["test_sha256"]


def test_a_fingerprint_reads_no_more_than_it_is_told():
    class Watched:
        def __init__(self):
            self.seen = []

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.seen.append(index)
            return {"xs": np.zeros((1, 1), np.float32)}

    train, test = Watched(), Watched()
    assert fingerprint(train, test, ("numpy",), first=2)["numpy"] == np.__version__
    assert train.seen == test.seen == [0, 1]
