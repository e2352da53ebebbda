"""Images of the user with a caption each, from a table; or what a larger encoder has made of them."""

import os
import pathlib
import zipfile

import numpy as np

from rnn_jax.tasks import prepared, task
from rnn_jax.tasks.captions import Captioned, caption_task
from rnn_jax.tasks.splits import stratified_split
from rnn_jax.tasks.tables import read_columns

_SHARES = {"validation": 0.1, "test": 0.1}


def images(
    path: str | os.PathLike[str],
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    image_size: int = 64,
    features: str | None = None,
    vocab_size: int | None = None,
    split_seed: int = 0,
) -> task.Task:
    """Says what is on an image of the user. A CSV file has the path of an image and its caption in each row.

    Paths are relative to the folder of the CSV file. An image is made as large as fits into a square, with gray beside
    it, and is "xs" `[image_size, image_size, 3]`. It may stand in several rows, with another caption in each.

    A tenth of the images is drawn for testing, and another tenth for validation, with all of their captions.

    Whoever has a large encoder gives its features in the place of the images, which are then not read: a .npz file
    with one array `[M, L, D]`, or `[M, rows, columns, D]` of a grid, for the M different images in the order in which
    the CSV file first names them. "xs" is `[L, D]`, then, and the captioner has no convolutions.

    Args:
      path: of the CSV file.
      image_column, caption_column: names of columns.
      image_size: pixels of a side, 8 or more.
      features: path of the .npz file, or None.
      vocab_size: as `rnn_jax.tasks.captions.caption_task`.
      split_seed: of the splits that are drawn.

    Raises:
      ValueError: if Pillow is not installed, a file is missing or is not what it is to be (an image is named by its
        row), there are fewer than three images, or an argument is out of range.
    """
    if image_size < 8:
        raise ValueError(f"image_size={image_size} is out of range; allowed: 8 or more pixels.")
    rows = read_columns("csv", path, image_column=image_column, caption_column=caption_column)
    files = list(dict.fromkeys(texts["image_column"] for _, texts in rows))
    if len(files) < 1 + len(_SHARES):
        raise ValueError(f"{path} has {len(files)} different images; needed: 3 or more, to train, validate and test.")
    if features is None:
        prepared.require("pillow", "13.*", "images:...", module="PIL")
        places = {texts["image_column"]: place for place, texts in reversed(rows)}
        folder = pathlib.Path(path).expanduser().parent
        seen = np.stack([load_image(folder / file, image_size, 3, places[file]) for file in files])
    else:
        seen = _load_features(features, len(files))
    number = {file: k for k, file in enumerate(files)}
    image_of = np.array([number[texts["image_column"]] for _, texts in rows])
    captions = [texts["caption_column"] for _, texts in rows]
    members = stratified_split(np.zeros(len(files), np.int32), ("image",), _SHARES, split_seed)

    def part(split: str) -> Captioned:
        chosen = np.flatnonzero(np.isin(image_of, members[split]))
        return Captioned(
            seen[members[split]], [captions[k] for k in chosen], np.searchsorted(members[split], image_of[chosen])
        )

    return caption_task(
        name=f"images:{path}",
        description=f"What is on an image of {pathlib.Path(path).name}.",
        source=f"{path}" if features is None else f"{path}, {features}",
        license="the user's own data",
        train=part("train"),
        validation=part("validation"),
        test=part("test"),
        packages=("numpy", "grain", *(("pillow",) if features is None else ())),
        vocab_size=vocab_size,
    )


def load_image(path: str | os.PathLike[str], size: int, channels: int, place: str | None = None) -> np.ndarray:
    """Reads an image file into a square, with gray beside it, uint8 `[size, size, channels]`.

    Args:
      path: of the file.
      size: pixels of a side.
      channels: 1 for gray, 3 for red, green and blue.
      place: where the path stands, for messages.

    Raises:
      ValueError: if there is no such file, or it is no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError  # here, as most tasks do without

    said = "" if place is None else f"{place}: "
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{said}there is no file {os.fspath(path)!r}.")
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{said}{os.fspath(path)!r} is no image that Pillow can read.") from error
    ground = Image.new("RGBA", image.size, "white")  # what is transparent
    ground.alpha_composite(image)
    mode, color = ("L", 128) if channels == 1 else ("RGB", (128, 128, 128))
    return np.asarray(ImageOps.pad(ground.convert(mode), (size, size), color=color)).reshape(size, size, channels)


def _load_features(path: str, count: int) -> np.ndarray:
    """Reads features, float32 `[M, L, D]`."""
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"features={path!r}: there is no such file; allowed: a .npz file with one array.")
    try:
        loaded = np.load(file)
        arrays = {name: loaded[name] for name in loaded.files}
    except (AttributeError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"features={path!r} is no .npz file of arrays of numbers.") from error
    if len(arrays) != 1:
        raise ValueError(f"features={path!r} has {len(arrays)} arrays: {', '.join(arrays)}; allowed: one.")
    (array,) = arrays.values()
    if array.ndim not in (3, 4) or len(array) != count or array.dtype.kind not in "fiu" or not array.size:
        raise ValueError(
            f"features={path!r} has an array of shape {array.shape} and type {array.dtype}; allowed: numbers"
            f" [{count}, places, features] or [{count}, rows, columns, features], for {count} different images."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"features={path!r} holds numbers that are not finite; allowed: finite ones.")
    return array.reshape(count, -1, array.shape[-1]).astype(np.float32)
