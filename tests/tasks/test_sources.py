"""Claims about sources of examples in memory."""

import numpy as np
import pytest

from rnn_jax import tasks


def test_an_example_in_memory_cannot_be_changed():
    source = tasks.ArraySource(xs=np.zeros((2, 3, 1), np.float32), label=np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="read-only"):
        source[0]["xs"][0] = 1


def test_arrays_of_unequal_length_are_no_source():
    with pytest.raises(ValueError, match="one length"):
        tasks.ArraySource(xs=np.zeros(2), label=np.zeros(3))
