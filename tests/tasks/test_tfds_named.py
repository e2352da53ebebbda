"""Claims about the data sets of tensorflow-datasets, on small generated data of the same names and features."""

import importlib.util
import io
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rnn_jax import tasks

_F = tfds.features


def _text(rng, label):
    words = ["good", "fine", "bad", "poor", "film", "story", "the", "a", "é"]
    return " ".join(rng.choice(words, size=rng.integers(3, 12))) + f" class {label}"


def _prepare(data_dir, name, version, features, splits, file_format="array_record", config=None):
    """Writes data under the name, version and features of a data set that TFDS knows, without its download.

    Args:
      splits: of each, a list of examples.
    """

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=_F.FeaturesDict(features), disable_shuffling=True)

    def split_generators(self, dl_manager):
        return {split: self._generate_examples(examples) for split, examples in splits.items()}

    content = {
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": lambda self, examples: enumerate(examples),
    }
    if config:
        content["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config)]
    builder = type("Generated", (tfds.core.GeneratorBasedBuilder,), content, skip_registration=True)
    tfds.disable_progress_bar()
    builder(data_dir=data_dir, file_format=file_format).download_and_prepare()
    return data_dir


def _ag_news(n, seed):
    rng = np.random.default_rng(seed)
    return [{"title": f"title {k}", "description": _text(rng, k % 4), "label": k % 4} for k in range(n)]


def _reviews(n, seed, field="text", labels=2):
    rng = np.random.default_rng(seed)
    return [{field: _text(rng, k % labels), "label": k % labels} for k in range(n)]


def _pixels(n, seed, shape=(28, 28)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def _images(pixels, **more):
    examples = []
    for k, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        file.seek(0)
        examples.append({"image": file, "label": k % 10, **{name: value(k) for name, value in more.items()}})
    return examples


_AG_NEWS = {"title": _F.Text(), "description": _F.Text(), "label": _F.ClassLabel(num_classes=4)}
_REVIEWS = {"text": _F.Text(), "label": _F.ClassLabel(num_classes=2)}
_MNIST = {"image": _F.Image(shape=(28, 28, 1)), "label": _F.ClassLabel(num_classes=10)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All the data sets that a test reads and leaves as they are."""
    path = tmp_path_factory.mktemp("tensorflow_datasets")
    _prepare(path, "ag_news_subset", "1.0.0", _AG_NEWS, {"train": _ag_news(80, 0), "test": _ag_news(20, 1)})
    unlabeled = [{**review, "label": -1} for review in _reviews(5, 2)]
    splits = {"train": _reviews(40, 0), "test": _reviews(10, 1), "unsupervised": unlabeled}
    _prepare(path, "imdb_reviews", "1.0.0", _REVIEWS, splits, config="plain_text")
    _prepare(path, "mnist", "3.0.1", _MNIST, {"train": _images(_pixels(60, 0)), "test": _images(_pixels(20, 1))})
    cifar10 = {"id": _F.Text(), "image": _F.Image(shape=(32, 32, 3)), "label": _F.ClassLabel(num_classes=10)}
    splits = {
        split: _images(_pixels(30, seed, (32, 32, 3)), id=lambda k: f"{k}")
        for split, seed in (("train", 0), ("test", 1))
    }
    _prepare(path, "cifar10", "3.0.2", cifar10, splits)
    glue = {"sentence": _F.Text(), "label": _F.ClassLabel(names=["negative", "positive"]), "idx": np.int32}
    with_number = [{**review, "idx": k} for k, review in enumerate(_reviews(40, 0, "sentence"))]
    secret = [{**review, "label": -1} for review in with_number[30:]]
    splits = {"train": with_number[:20], "validation": with_number[20:30], "test": secret}
    _prepare(path, "glue", "2.0.0", glue, splits, config="sst2")
    return path


@pytest.fixture
def no_network(monkeypatch):
    """Fails a test that so much as looks up a name."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not attempts


def _texts(task, split):
    source = getattr(task, split)
    return [(task.vocabulary.decode(e["tokens"]), int(e["label"])) for e in (source[k] for k in range(len(source)))]


def test_ag_news_reads_title_and_description(data_dir, no_network):
    task = tasks.make_task("tfds:ag_news_subset", data_dir=data_dir, tokens="byte")
    assert task.class_names == ("World", "Sports", "Business", "Sci/Tech")
    read = {split: _texts(task, split) for split in ("train", "validation", "test")}
    written = [
        [(f"{e['title']} {e['description']}", e["label"]) for e in _ag_news(*args)] for args in ((80, 0), (20, 1))
    ]
    assert sorted(read["train"] + read["validation"]) == sorted(written[0])
    assert read["test"] == written[1]
    assert sorted(label for _, label in read["validation"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert task.fingerprint["dataset"] == "ag_news_subset/1.0.0"


def test_imdb_reviews_reads_words_and_leaves_the_unlabeled_aside(data_dir, no_network):
    task = tasks.make_task("tfds:imdb_reviews", data_dir=data_dir)
    assert (task.vocabulary.kind, task.class_names) == ("word", ("neg", "pos"))
    assert [len(split) for split in (task.train, task.validation, task.test)] == [36, 4, 10]
    assert _texts(task, "test") == [(e["text"], e["label"]) for e in _reviews(10, 1)]
    assert tasks.make_task("tfds:imdb_reviews", data_dir=data_dir, max_length=4).seq_len == 4


def test_mnist_is_read_by_row_or_by_pixel(data_dir, no_network):
    by_row, by_pixel = (tasks.make_task("tfds:mnist", data_dir=data_dir, rows=rows) for rows in (None, False))
    assert (by_row.seq_len, by_row.in_features, by_row.out_features) == (28, 28, 10)
    assert (by_pixel.seq_len, by_pixel.in_features, by_pixel.out_features) == (784, 1, 10)
    expected = _pixels(20, 1).astype(np.float32) / 255
    for _ in range(2):  # decoded the first time, kept the second
        np.testing.assert_array_equal(tasks.as_batch(by_row.test)["xs"], expected)
    np.testing.assert_array_equal(tasks.as_batch(by_pixel.test)["xs"], expected.reshape(20, 784, 1))
    assert by_row.test[3]["label"].dtype == np.int32
    np.testing.assert_array_equal(tasks.as_batch(by_row.test)["label"], np.arange(20) % 10)
    assert [len(split) for split in (by_row.train, by_row.validation)] == [50, 10]
    train = tasks.as_batch(by_row.train)["xs"], tasks.as_batch(by_row.validation)["xs"]
    assert {image.tobytes() for image in np.concatenate(train)} == {
        image.tobytes() for image in _pixels(60, 0).astype(np.float32) / 255
    }


def test_an_image_too_large_to_keep_is_decoded_again(data_dir, monkeypatch):
    kept = tasks.as_batch(tasks.make_task("tfds:mnist", data_dir=data_dir).test)
    monkeypatch.setattr(sys.modules["rnn_jax.tasks.tfds_named"], "_KEPT_BYTES", 0)
    source = tasks.make_task("tfds:mnist", data_dir=data_dir).test
    assert source.kept.size == 0
    np.testing.assert_array_equal(tasks.as_batch(source)["xs"], kept["xs"])


def test_a_row_of_a_color_image_holds_its_pixels_channels(data_dir, no_network):
    by_row, by_pixel = (tasks.make_task("tfds:cifar10", data_dir=data_dir, rows=rows) for rows in (True, False))
    expected = _pixels(30, 1, (32, 32, 3)).astype(np.float32) / 255
    np.testing.assert_array_equal(tasks.as_batch(by_row.test)["xs"], expected.reshape(30, 32, 96))
    np.testing.assert_array_equal(tasks.as_batch(by_pixel.test)["xs"], expected.reshape(30, 1024, 3))


def test_where_test_labels_are_secret_validation_is_the_test_split(data_dir, no_network):
    task = tasks.make_task("tfds:glue/sst2", data_dir=data_dir)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [18, 2, 10]
    assert _texts(task, "test") == [(e["sentence"], e["label"]) for e in _reviews(40, 0, "sentence")[20:30]]


def test_examples_whose_label_is_not_told_are_left_out(tmp_path):
    untold = [{**review, "label": -1} for review in _reviews(10, 2)]
    splits = {"train": untold[:7] + _reviews(30, 0) + untold[7:], "test": _reviews(10, 1) + untold}
    _prepare(tmp_path, "imdb_reviews", "1.0.0", _REVIEWS, splits, config="plain_text")
    task = tasks.make_task("tfds:imdb_reviews", data_dir=tmp_path)
    assert sorted(_texts(task, "train") + _texts(task, "validation")) == sorted(
        (e["text"], e["label"]) for e in _reviews(30, 0)
    )
    assert _texts(task, "test") == [(e["text"], e["label"]) for e in _reviews(10, 1)]


def test_of_two_labels_the_known_one_is_read(tmp_path):
    features = {
        "text": _F.Text(),
        "label-coarse": _F.ClassLabel(names=["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]),
        "label-fine": _F.ClassLabel(num_classes=47),
    }
    examples = [{"text": f"what {k}", "label-coarse": k % 6, "label-fine": k % 47} for k in range(60)]
    _prepare(tmp_path, "trec", "1.0.0", features, {"train": examples, "test": examples[:12]})
    task = tasks.make_task("tfds:trec", data_dir=tmp_path, tokens="byte")
    assert set(task.class_names) == {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}
    assert _texts(task, "test")[:2] == [("what 0", 0), ("what 1", 1)]


def test_the_baseline_score_is_reached_by_answering_the_commonest_class(data_dir):
    task = tasks.make_task("tfds:mnist", data_dir=data_dir)
    counts = np.bincount(tasks.as_batch(task.train)["label"], minlength=10).astype(np.float32)
    score = np.divide(*task.score(lambda xs: jnp.tile(counts, (len(xs), 1)), tasks.as_batch(task.test)))
    assert float(score) == pytest.approx(task.baseline_score) == pytest.approx(0.1)


def test_a_split_seed_draws_the_validation_split(data_dir):
    first, again, other = (
        tasks.make_task("tfds:ag_news_subset", data_dir=data_dir, tokens="byte", split_seed=seed) for seed in (0, 0, 1)
    )
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint["validation_sha256"] != other.fingerprint["validation_sha256"]
    assert first.fingerprint["test_sha256"] == other.fingerprint["test_sha256"]


def test_what_is_not_prepared_is_refused_at_once_and_without_a_network(tmp_path, no_network):
    start = time.monotonic()
    sentence = (
        f"tfds:mnist is not prepared in {tmp_path}/mnist/3.0.1; run the same command with --download where there is a"
        " network (and TensorFlow, for many data sets), and copy that folder here if that is elsewhere."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tasks.make_task("tfds:mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


def test_a_new_process_says_so_in_five_seconds_and_nothing_else(tmp_path):
    script = f"""
        import time
        start = time.monotonic()
        from absl import logging
        from rnn_jax.tasks.tfds_named import tfds_named
        logging.set_verbosity(logging.WARNING)
        imported = time.monotonic()
        try:
            tfds_named("imdb_reviews", data_dir={str(tmp_path)!r})
        except ValueError as error:
            assert "is not prepared" in str(error)
            print(time.monotonic() - imported)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert float(done.stdout) < 5
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("imdb_reviewz", "tensorflow-datasets knows no data set 'imdb_reviewz'; near to it: imdb_reviews."),
        (
            "xyzzyq/a:1.0.0",
            "tensorflow-datasets knows no data set 'xyzzyq/a:1.0.0'; it knows *, none of a name near to it.",
        ),
        (
            "sentiment140",
            "tfds:sentiment140 is no classification of texts or images; needed: one Text or Image and one *",
        ),
        (
            "imagenet2012",
            "tfds:imagenet2012 has images of shape (None, None, 3) and type uint8; allowed: those of one size and *",
        ),
        ("goemotions", "tfds:goemotions cannot be set up here: No module named 'tensorflow' (ModuleNotFoundError)."),
        (
            "mnist:9.9.9",
            "tfds:mnist:9.9.9 cannot be set up here: Dataset mnist cannot be loaded at version 9.9.9, only: 3.0.1 *",
        ),
        ("glue/x", "tfds:glue/x cannot be set up here: BuilderConfig x not found *"),
        (
            "huggingface:imdb",
            "tfds:huggingface:imdb cannot be set up here: it is a data set of others; allowed: those of *",
        ),
        ("kubric:movi", "tfds:kubric:movi cannot be set up here: it is a data set of others; allowed: those of *"),
        ("", "tfds: cannot be set up here: Parsing builder name string  failed (ValueError)."),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, no_network, capfd, name, sentence):
    if name == "goemotions" and importlib.util.find_spec("tensorflow"):
        pytest.skip("with TensorFlow it can be set up")
    pattern = re.escape(sentence).replace(r"\ \*", " .*")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        tasks.make_task(f"tfds:{name}", data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "option", "kind"),
    [
        ("mnist", {"tokens": "word"}, "images"),
        ("mnist", {"max_length": 3}, "images"),
        ("imdb_reviews", {"rows": False}, "texts"),
    ],
)
def test_an_option_of_the_other_kind_is_refused(data_dir, name, option, kind):
    ((key, value),) = option.items()
    sentence = f"{key}={value!r} is no option of the task 'tfds:{name}', which reads {kind}."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tasks.make_task(f"tfds:{name}", data_dir=data_dir, **option)


def test_parquet_reads_as_array_record_does(data_dir, tmp_path):
    splits = {"train": _ag_news(80, 0), "test": _ag_news(20, 1)}
    _prepare(tmp_path, "ag_news_subset", "1.0.0", _AG_NEWS, splits, file_format="parquet")
    found = tasks.make_task("tfds:ag_news_subset", data_dir=tmp_path)
    assert found.fingerprint == tasks.make_task("tfds:ag_news_subset", data_dir=data_dir).fingerprint


def test_data_that_only_tensorflow_reads_are_named_with_the_cure(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    info = tmp_path / "mnist/3.0.1/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for shard in info.parent.glob("*.array_record*"):
        shard.rename(shard.with_name(shard.name.replace("array_record", "tfrecord")))
    with pytest.raises(
        ValueError, match=r"^tfds:mnist is prepared in .* as tfrecord, which needs TensorFlow; .*array_record$"
    ):
        tasks.make_task("tfds:mnist", data_dir=tmp_path)


def test_damaged_data_are_named(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    for shard in tmp_path.rglob("*-train.array_record*"):
        shard.unlink()
    with pytest.raises(ValueError, match=rf"^the data in {tmp_path}/mnist/3\.0\.1 cannot be read: "):
        tasks.make_task("tfds:mnist", data_dir=tmp_path)


def test_a_download_is_tried_if_asked_for_and_its_failure_is_one_sentence(tmp_path, monkeypatch):
    asked = []

    def refuse(self, *args, **kwargs):
        asked.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr("requests.Session.send", refuse)
    with pytest.raises(ValueError, match=r"^tfds:mnist could not be prepared: no network in this test \(OSError\)\.$"):
        tasks.make_task("tfds:mnist", data_dir=tmp_path, download=True)
    assert asked
