"""Claims about text classification."""

import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.tasks.text import text_classification, tfidf_baseline
from rnn_jax.tasks.vocabulary import UNKNOWN

TRAIN = (["red apple", "green apple", "green pear", "red"], np.array([0, 1, 1, 0], np.int32))
VALIDATION = (["violet plum"], np.array([0], np.int32))
TEST = (["green quince", "", "blue"], np.array([1, 0, 0], np.int32))


def make(**changed):
    arguments = {
        "name": "fruit",
        "description": "Which color.",
        "source": "made up here",
        "license": "none",
        "train": TRAIN,
        "validation": VALIDATION,
        "test": TEST,
        "class_names": ("red", "green"),
        "packages": ("numpy",),
    }
    return text_classification(**arguments | changed)


@pytest.mark.parametrize("tokens", ["word", "character", "byte"])
def test_the_vocabulary_ignores_validation_and_test(tokens):
    assert make(tokens=tokens).vocabulary == make(tokens=tokens, validation=None, test=TRAIN).vocabulary
    if tokens != "byte":
        assert not {"q", "quince", "v", "violet"} & set(make(tokens=tokens).vocabulary.symbols)


@pytest.mark.parametrize("tokens", ["word", "character", "byte"])
def test_texts_come_back_from_the_tokens_of_the_training_split(tokens):
    task = make(tokens=tokens)
    assert [task.vocabulary.decode(task.train[i]["tokens"]) for i in range(4)] == TRAIN[0]
    assert [int(task.train[i]["label"]) for i in range(4)] == [*TRAIN[1]]
    assert (task.in_features, task.out_features, task.reads_tokens) == (len(task.vocabulary), 2, True)


def test_an_empty_text_is_one_unknown_token():
    np.testing.assert_array_equal(make().test[1]["tokens"], np.array([UNKNOWN], np.int32), strict=True)


def test_only_the_first_tokens_are_kept():
    task = make(tokens="word", max_length=1)
    assert [task.vocabulary.decode(task.train[i]["tokens"]) for i in range(4)] == ["red", "green", "green", "red"]
    assert task.seq_len == 1


def test_seq_len_is_that_of_the_longest_text_of_any_split():
    assert make().seq_len == len("green quince")


def test_the_baseline_score_is_that_of_the_commonest_training_class():
    train = (["a", "b", "c"], np.array([1, 1, 0], np.int32))
    task = make(train=train)
    right, count = task.score(
        lambda tokens, lengths: jnp.tile(jnp.array([0.0, 1.0]), (len(tokens), 1)), tasks.as_batch(task.test)
    )
    assert task.baseline_score == pytest.approx(int(right) / int(count), abs=1e-7)
    assert task.baseline_score == pytest.approx(1 / 3)


def test_a_fingerprint_shows_a_change_in_each_split():
    plain = make().fingerprint
    for split, (texts, labels) in {"train": TRAIN, "validation": VALIDATION, "test": TEST}.items():
        changed = make(**{split: ([*texts[:-1], "der"], labels)}, tokens="byte").fingerprint
        other = make(tokens="byte").fingerprint
        assert {key for key in other if other[key] != changed[key]} == {f"{split}_sha256"}
    assert plain["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"max_length": 0}, r"^max_length=0 is out of range; allowed: 1 or more\.$"),
        ({"test": ([], np.zeros(0, np.int32))}, r"^the test split of the task 'fruit' is empty; allowed: at least one"),
        ({"train": (["a"], np.zeros(2, np.int32))}, r"has 1 texts and labels of shape \(2,\); allowed: one label for"),
        (
            {"validation": (["a"], np.array([2], np.int32))},
            r"^the validation split .* has labels 2 to 2; allowed: 0 to 1,",
        ),
        ({"tokens": "letter"}, r"^tokens='letter' is unknown; allowed: word, character, byte\.$"),
    ],
)
def test_what_is_no_task_is_refused_in_one_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**changed)


def test_the_baseline_tells_letters_and_words_apart_and_ignores_the_order():
    rng = np.random.default_rng(0)

    def texts_of(words, count):
        return [" ".join(rng.choice(words, 4)) for _ in range(count)]

    def split(count):
        return texts_of(["red", "ruby", "rose"], count) + texts_of(["green", "grass", "gorse"], count)

    labels = np.repeat([0, 1], 50).astype(np.int32)
    seen = make(tokens="word", train=(split(50), labels), test=(split(50), labels))
    assert tfidf_baseline(seen) == {"character 1-3-grams": 1.0, "word 1-2-grams": 1.0}
    nothing_to_learn = make(tokens="word", train=(split(50), labels), test=(split(50), np.tile([0, 1], 50)))
    assert tfidf_baseline(nothing_to_learn) == {"character 1-3-grams": 0.5, "word 1-2-grams": 0.5}


def test_the_baseline_is_for_classification_of_text():
    with pytest.raises(ValueError, match=r"^the task 'adding' has no TF-IDF baseline; allowed: classification of text"):
        tfidf_baseline(tasks.make_task("adding"))
