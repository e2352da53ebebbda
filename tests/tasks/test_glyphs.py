import unicodedata

import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.tasks.glyphs import FACES, letters, render
from rnn_jax.tasks.task import END
from rnn_jax.tasks.vocabulary import UNKNOWN


@pytest.fixture(scope="module")
def task():
    return tasks.make_task("glyphs")


def texts(task, source):
    return [task.answer_vocabulary.decode(answer[answer > END]) for answer in source.answers]


def test_there_are_thousands_of_images_of_letters_with_their_names(task):
    sizes = [len(source) for source in (task.train, task.validation, task.test)]
    assert sizes == [4961, 769, 1538]
    assert (len(task.answer_vocabulary), task.answer_length) == (272, 11)
    captions = texts(task, task.train)
    assert "latin small letter a with dot above" in captions
    assert not any("\N{REPLACEMENT CHARACTER}" in caption for caption in captions)
    assert task.in_features == (32, 1)
    example = task.train[0]["xs"]
    assert example.shape == (32, 32, 1)
    assert (example.min(), example.max()) == (0, 1)


def test_an_image_is_that_of_its_caption(task):
    known = {unicodedata.name(letter).lower(): letter for letter in letters(FACES[0])}
    for index in (0, 1000, 4000):
        letter = known[texts(task, task.train)[index]]
        drawn = [render(letter, face) for face in FACES]
        assert any(np.array_equal(task.train.images[index][..., 0], image) for image in drawn)


def test_no_letter_is_in_two_splits_and_no_image_has_two_names(task):
    captions = [set(texts(task, source)) for source in (task.train, task.validation)]
    assert not captions[0] & captions[1]
    images = [image.tobytes() for source in (task.train, task.validation, task.test) for image in source.images]
    assert len(set(images)) == len(images)
    assert all(image.any() for image in task.train.images)
    # Latin A, Greek Alpha and Cyrillic A look the same: no image says which of them it is.
    assert not any("letter alpha" in text and "with" not in text and "capital" in text for text in captions[0])


def test_few_words_of_the_test_split_are_unknown(task):
    unknown = np.mean(np.any(task.test.answers == UNKNOWN, axis=1))
    assert 0.02 < unknown < 0.08


def test_baselines(task):
    assert task.baseline_score == pytest.approx(0.440, abs=2e-3)
    assert task.references() == {"nearest neighbor": pytest.approx(0.599, abs=2e-3)}
    # Never the right caption: the split is by letter.
    nearest = tasks.captions.nearest_answers(task.train, task.test)
    assert not np.any(np.all(nearest == task.test.answers, axis=1) & ~np.any(task.test.answers == UNKNOWN, axis=1))
