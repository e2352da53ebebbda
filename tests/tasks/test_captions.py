import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax.tasks import as_batch
from rnn_jax.tasks.captions import (
    Captioned,
    caption_scores,
    caption_task,
    nearest_neighbors,
    overlap_of,
    word_overlap,
)
from rnn_jax.tasks.task import END, NOT_ASKED
from rnn_jax.tasks.vocabulary import UNKNOWN


def small_task():
    images = np.arange(2 * 3 * 4 * 4 * 1, dtype=np.uint8).reshape(6, 4, 4, 1)
    texts = ["a red dog", "a red cat", "a cat", "two dogs, red", "a red dog", "a blue fox"]
    splits = {}
    for name, members in {"train": [0, 1, 2, 3], "validation": [4], "test": [5, 4]}.items():
        splits[name] = Captioned(images[members], [texts[k] for k in members], np.arange(len(members)))
    return caption_task(name="t", description="", source="", license="", packages=("numpy",), **splits)


def test_the_overlap_is_that_of_sets_of_words():
    random = np.random.default_rng(0)
    said, answer = (random.integers(-1, 6, size=(200, 7)) for _ in range(2))
    said[said == NOT_ASKED] = END

    def words(row):
        ends = [k for k, token in enumerate(row) if token in (END, NOT_ASKED)]
        return set(row[: ends[0] if ends else None].tolist())

    expected = []
    for one, other in zip(map(words, said), map(words, answer)):
        shared = len((one & other) - {UNKNOWN})
        either = len(one) + len(other) - shared
        expected.append(shared / either if either else 1.0)
    assert 0 < np.mean(expected) < 1
    np.testing.assert_allclose(overlap_of(said, answer), expected, rtol=1e-6)


def test_the_score_is_what_a_model_says_and_can_be_taken_of_each_caption():
    task = small_task()
    batch = as_batch(task.test)

    class Model:
        def greedy(self, inputs, lengths, steps):
            assert lengths is None
            assert steps == task.answer_length
            row = jnp.asarray(np.pad(task.answer_vocabulary.encode("red dog"), (0, steps - 2)))
            return jnp.broadcast_to(row[None], (inputs.shape[0], steps))

    total, count = jax.jit(lambda batch: word_overlap(Model(), batch))(dict(batch))
    # "a blue fox" is a, and two words that no caption of the training split has and count as one; "a red dog".
    assert count == 2
    np.testing.assert_allclose(total, 0 + 2 / 3, rtol=1e-6)


def test_the_answer_ends_and_is_padded():
    task = small_task()
    answer = task.train[2]["answer"]
    assert task.answer_length == len(answer) == 5
    assert task.answer_vocabulary.decode(answer[answer > END]) == "a cat"
    assert answer[2:].tolist() == [END, NOT_ASKED, NOT_ASKED]
    assert task.in_features == (4, 1)
    xs = task.train[1]["xs"]
    assert xs.dtype == np.float32
    np.testing.assert_allclose(xs[..., 0], np.arange(16, 32).reshape(4, 4) / 255, rtol=1e-6)
    assert {"train_sha256", "validation_sha256", "test_sha256", "numpy"} <= set(task.fingerprint)


def test_the_baseline_says_the_commonest_words():
    # Of the training split: red 3, a 3, then cat and others. {a, red} overlaps by 2/3, 2/3, 1/3, 1/5; with cat by 2/4,
    # 1, 2/3, 1/6, which is more. Of the test split: {a, red, cat} with {a, ?} and {a, red, dog}.
    assert small_task().baseline_score == pytest.approx((1 / 4 + 2 / 4) / 2)


def test_the_nearest_neighbour_is_the_nearest():
    random = np.random.default_rng(0)
    known, asked = random.normal(size=(30, 3, 2)), random.normal(size=(7, 3, 2))
    expected = [np.argmin([np.sum((one - other) ** 2) for other in known]) for one in asked]
    assert nearest_neighbors(known, asked).tolist() == expected
    # Of the test images, those numbered 5 and 4, the nearest in the training split is number 3: "two dogs, red".
    assert small_task().references() == {"nearest neighbor": pytest.approx((0 + 1 / 6) / 2)}


def test_scores_of_captions_of_several_answers():
    right = [["a small dog on grass", "a dog"], ["two cats sit on a mat"]]
    perfect = caption_scores(["a small dog on grass", "two cats sit on a mat"], right)
    assert perfect == {
        "BLEU-4": pytest.approx(100),
        "exact match": 1.0,
        "word overlap": pytest.approx((1.4 / 2 + 1) / 2),
    }
    wrong = caption_scores(["a fox", "a mat"], right)
    assert wrong["exact match"] == 0
    assert wrong["BLEU-4"] == 0
    assert wrong["word overlap"] == pytest.approx(((1 / 6 + 1 / 3) / 2 + 2 / 6) / 2)


def test_an_empty_split_is_told():
    one = Captioned(np.zeros((1, 4, 4, 1), np.uint8), ["a"], np.arange(1))
    none = Captioned(np.zeros((0, 4, 4, 1), np.uint8), [], np.arange(0))
    with pytest.raises(ValueError, match="the test split of 't' is empty"):
        caption_task(name="t", description="", source="", license="", packages=(), train=one, validation=one, test=none)
