"""Images of the user, and features of a larger encoder."""

import csv

import numpy as np
import pytest
from PIL import Image

from rnn_jax import tasks
from rnn_jax.tasks.images import load_image
from rnn_jax.tasks.task import END

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def folder_of_images(path, count=12, columns=("image", "caption"), captions=1):
    """Writes plain images, each with captions that say its color, and a CSV file of them; returns that."""
    rows = []
    for k in range(count):
        color = list(COLORS)[k % 3]
        (path / "files").mkdir(exist_ok=True)
        Image.new("RGB", (20 + k, 10), COLORS[color]).save(path / "files" / f"{k}.png")
        rows += [
            (f"files/{k}.png", f"a {color} image" if number == 0 else f"all {color}") for number in range(captions)
        ]
    table = path / "table.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *[row[: len(columns)] for row in rows]])
    return table


def captions_of(task, source):
    return [task.answer_vocabulary.decode(answer[answer > END]) for answer in source.answers]


def test_images_stand_beside_their_captions(tmp_path):
    task = tasks.make_task(f"images:{folder_of_images(tmp_path, 20)}", image_size=16)
    assert [len(source) for source in (task.train, task.validation, task.test)] == [16, 2, 2]
    assert task.in_features == (16, 3)
    for source in (task.train, task.validation, task.test):
        for example, caption in zip((source[k] for k in range(len(source))), captions_of(task, source)):
            assert example["xs"].shape == (16, 16, 3)
            np.testing.assert_allclose(example["xs"][8, 8] * 255, COLORS[caption.split()[1]])
    # As large as fits, with gray above and below.
    np.testing.assert_allclose(example["xs"][0, 8], 128 / 255, rtol=1e-6)


def test_an_image_of_several_captions_is_in_one_split(tmp_path):
    task = tasks.make_task(f"images:{folder_of_images(tmp_path, 20, captions=2)}", image_size=16)
    assert [len(source) for source in (task.train, task.validation, task.test)] == [32, 4, 4]
    assert len(task.test.images) == 2
    for k, caption in enumerate(captions_of(task, task.test)):
        np.testing.assert_allclose(task.test[k]["xs"][8, 8] * 255, COLORS[caption.split()[1]])


def test_other_columns_and_a_transparent_image(tmp_path):
    table = folder_of_images(tmp_path, columns=("file", "text"))
    task = tasks.make_task(f"images:{table}", image_column="file", caption_column="text", image_size=8)
    assert len(task.train) == 10
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert load_image(tmp_path / "nothing.png", 8, 1).tolist() == [[[255]] * 8] * 8


def test_features_stand_in_the_place_of_images(tmp_path):
    table = folder_of_images(tmp_path, captions=2)
    features = np.random.default_rng(0).normal(size=(12, 2, 3, 5))
    np.savez(tmp_path / "features.npz", features)
    for file in (tmp_path / "files").iterdir():
        file.unlink()
    task = tasks.make_task(f"images:{table}", features=str(tmp_path / "features.npz"))
    assert task.in_features == 5
    assert task.train[0]["xs"].shape == (6, 5)
    colors = {tuple(row.ravel()[:2].astype(np.float32)): list(COLORS)[k % 3] for k, row in enumerate(features)}
    for k, caption in enumerate(captions_of(task, task.train)):
        assert colors[tuple(task.train[k]["xs"].ravel()[:2])] in caption


def refused(table, **options):
    with pytest.raises(ValueError, match=r".") as error:
        tasks.make_task(f"images:{table}", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_read_is_told(tmp_path):
    table = folder_of_images(tmp_path)
    assert refused(tmp_path / "none.csv") == f"there is no file {tmp_path / 'none.csv'}."
    assert "image_size=4 is out of range" in refused(table, image_size=4)
    assert "caption_column='text'" in refused(table, caption_column="text")
    (tmp_path / "files" / "3.png").write_text("no image")
    assert refused(table).endswith("files/3.png' is no image that Pillow can read.")
    assert "line 5" in refused(table)
    (tmp_path / "files" / "3.png").unlink()
    assert "line 5: there is no file" in refused(table)
    (tmp_path / "one").mkdir()
    one_column = folder_of_images(tmp_path / "one", columns=("image",))
    assert "has no column of this name; it has: 'image'." in refused(one_column)
    (tmp_path / "two").mkdir()
    assert "has 2 different images; needed: 3 or more" in refused(folder_of_images(tmp_path / "two", 2))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no such file"),
        (b"text", "is no .npz file"),
        ({"a": np.zeros((12, 2, 3)), "b": np.zeros(3)}, "has 2 arrays: a, b; allowed: one"),
        ({"a": np.zeros((11, 2, 3))}, "allowed: numbers [12, places, features]"),
        ({"a": np.zeros((12, 3))}, "allowed: numbers [12, places, features]"),
        ({"a": np.full((12, 2, 3), np.nan)}, "not finite"),
        ({"a": np.full((12, 2, 3), None)}, "is no .npz file"),
    ],
)
def test_bad_features_are_told(tmp_path, content, told):
    table, path = folder_of_images(tmp_path), tmp_path / "features.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    assert told in refused(table, features=str(path))
