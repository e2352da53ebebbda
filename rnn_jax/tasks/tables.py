"""Texts of the user, with a label each, from a table: a CSV, TSV or JSONL file."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.splits import class_names, stratified_split
from rnn_jax.tasks.text import text_classification

_DEFAULTS = {"text_column": "text", "label_column": "label"}


def table(
    file_format: str,
    path: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    test_path: str | os.PathLike[str] | None = None,
    tokens: str = "word",
    vocab_size: int | None = None,
    max_length: int | None = None,
    split_seed: int = 0,
) -> task.Task:
    """Says the label of a text of the user, read from two columns of a table.

    Files are UTF-8, with or without a byte order mark. In a CSV file the first row names the columns, and a field in
    double quotes may hold commas, line ends and doubled quotes. A TSV file is the same with tabs; if every one of its
    lines has as many fields as the first, though, lines are rows, and a quote in the middle of one is only a quote.
    A JSONL file has an object on each line. Blank lines are skipped.

    Labels may be words or numbers and are classes in any case, numbers in numerical order, words in alphabetical
    order; blanks around a label do not count. The text is "tokens", the label "label", as `text_classification` says.

    A tenth of every class is drawn for testing, unless there is a separate file for that, and another tenth for
    validation.

    Args:
      file_format: "csv", "tsv" or "jsonl".
      path: of the file.
      text_column, label_column: names of columns; "text" and "label" by default.
      test_path: another file of the same format and columns, for testing.
      tokens, vocab_size, max_length: as `text_classification`.
      split_seed: of the splits that are drawn.

    Raises:
      ValueError: if there is no such file, format or column, a row is damaged or has no text or label (named by its
        line), there is one class only, a class has too few rows to be split, or a label occurs in the test file alone.
    """
    if file_format not in _READERS:
        raise ValueError(f"file_format={file_format!r} is unknown; allowed: {', '.join(_READERS)}.")
    read = functools.partial(_read, _READERS[file_format], text_column=text_column, label_column=label_column)
    rows = read(path)
    classes = class_names(rows.labels)
    if len(classes) < 2:
        raise ValueError(
            f"{path} has one class only: {rows.label_column}={classes[0]!r} in all {len(rows.labels)} rows;"
            " needed: 2 or more."
        )
    labels = _numbers(rows, classes)
    shares = {"validation": 0.1} if test_path is not None else {"validation": 0.1, "test": 0.1}
    drawn = stratified_split(labels, classes, shares, split_seed)
    splits = {split: ([rows.texts[k] for k in members], labels[members]) for split, members in drawn.items()}
    if test_path is not None:
        test_rows = read(test_path)
        splits["test"] = (test_rows.texts, _numbers(test_rows, classes))
    return text_classification(
        name=f"{file_format}:{path}",
        description=f"Which of {len(classes)} labels a text of {pathlib.Path(path).name} has.",
        source=f"{path}" if test_path is None else f"{path}, {test_path}",
        license="the user's own data",
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        class_names=classes,
        packages=("numpy", "grain"),
        tokens=tokens,
        vocab_size=vocab_size,
        max_length=max_length,
    )


def read_columns(file_format: str, path: str | os.PathLike[str], **columns: str) -> list[tuple[str, dict[str, str]]]:
    """Reads texts from the columns of a file; the formats are those of `table`.

    Args:
      file_format: "csv", "tsv" or "jsonl".
      path: of the file.
      **columns: the name of a column, by the option that says it.

    Returns:
      of each row its place, for messages, and its texts by option, without blanks around them.

    Raises:
      ValueError: if there is no such file or column, there are no rows, or a row is damaged or has an empty text.
    """
    found, records = _READERS[file_format](os.fspath(path), decoded(path))
    if not records:
        raise ValueError(f"{path} has no rows.")
    names = {option: _column(option, name, found, path) for option, name in columns.items()}
    rows = []
    for record in records:
        place, texts = f"{path}, line {record.line}", {}
        for option, name in names.items():
            text = record.values.get(name)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{place}: {name!r} is {'empty' if text == '' else repr(text)}; needed: a text.")
            texts[option] = text.strip()
        rows.append((place, texts))
    return rows


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What two columns of a file hold, and where each row stands, for messages."""

    texts: list[str]
    labels: list[str]
    places: list[str]
    label_column: str


@dataclasses.dataclass(frozen=True)
class _Record:
    """A row of a table: the line it begins on, and its values by column."""

    line: int
    values: dict[str, Any]


def _numbers(rows: _Rows, classes: Sequence[str]) -> np.ndarray:
    number = {name: k for k, name in enumerate(classes)}
    for label, place in zip(rows.labels, rows.places):
        if label not in number:
            shown = ", ".join(map(repr, classes[:10])) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
            raise ValueError(f"{place}: the label {label!r} is not in the training file; it has: {shown}.")
    return np.array([number[label] for label in rows.labels], np.int32)


def _read(
    reader: Callable[[str, str], tuple[list[str], list[_Record]]],
    path: str | os.PathLike[str],
    text_column: str | None,
    label_column: str | None,
) -> _Rows:
    columns, records = reader(os.fspath(path), decoded(path))
    if not records:
        raise ValueError(f"{path} has no rows.")
    text_column = _column("text_column", text_column, columns, path)
    label_column = _column("label_column", label_column, columns, path)
    if text_column == label_column:
        raise ValueError(f"text_column and label_column are both {text_column!r}; needed: two different columns.")
    rows = _Rows([], [], [], label_column)
    for record in records:
        place = f"{path}, line {record.line}"
        for column in (text_column, label_column):
            if column not in record.values:
                raise ValueError(f"{place}: there is no {column!r}.")
        text, label = record.values[text_column], record.values[label_column]
        if not isinstance(text, str):
            raise ValueError(f"{place}: {text_column!r} is {json.dumps(text)[:40]}; needed: a string.")
        if not isinstance(label, str | int | float):
            raise ValueError(f"{place}: {label_column!r} is {json.dumps(label)[:40]}; needed: a string or a number.")
        label = (label if isinstance(label, str) else json.dumps(label)).strip()
        for column, value in ((text_column, text), (label_column, label)):
            if not value.strip():
                raise ValueError(f"{place}: {column!r} is empty.")
        rows.texts.append(text)
        rows.labels.append(label)
        rows.places.append(place)
    return rows


def _column(option: str, asked: str | None, columns: list[str], path: str | os.PathLike[str]) -> str:
    name = _DEFAULTS[option] if asked is None else asked
    if columns.count(name) != 1:
        found = "no column" if name not in columns else f"{columns.count(name)} columns"
        raise ValueError(
            f"{option}={name!r}: {path} has {found} of this name; it has: {', '.join(map(repr, columns))}."
        )
    return name


def decoded(path: str | os.PathLike[str]) -> str:
    """Returns the text of a UTF-8 file, without a byte order mark.

    Raises:
      ValueError: if there is no such file, or it is not UTF-8.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no file {path}.")
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Counted from the end, as a byte order mark is not in what the error counts from the start.
        before = content[: len(content) - len(error.object) + error.start]
        line, byte = before.count(b"\n") + 1, error.object[error.start]
        raise ValueError(f"{path}, line {line}: the byte 0x{byte:02x} is not UTF-8.") from None


def _read_csv(path: str, text: str, delimiter: str = ",") -> tuple[list[str], list[_Record]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    start = 1
    try:
        with _fields_of_any_size():
            for fields in reader:
                rows.append((start, fields))
                start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {start}: quotes that do not pair up in the row that begins here ({error})."
        ) from None
    return _records(path, rows)


@contextlib.contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Lifts the limit of 128 kB a field, and puts it back: it is one for the whole process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_tsv(path: str, text: str) -> tuple[list[str], list[_Record]]:
    rows = [(number, line.removesuffix("\r").split("\t")) for number, line in enumerate(text.split("\n"), start=1)]
    rows = [(number, fields) for number, fields in rows if fields != [""]]
    if len({len(fields) for _, fields in rows}) > 1:  # tabs or line ends within quotes, or a bad row
        return _read_csv(path, text, "\t")
    return _records(path, [(number, [_unquoted(field) for field in fields]) for number, fields in rows])


def _unquoted(field: str) -> str:
    """A field without the quotes that some programs put around it."""
    if len(field) < 2 or not field.startswith('"') or not field.endswith('"'):
        return field
    inner = field[1:-1]
    return field if '"' in inner.replace('""', "") else inner.replace('""', '"')


def _records(path: str, rows: list[tuple[int, list[str]]]) -> tuple[list[str], list[_Record]]:
    rows = [(line, fields) for line, fields in rows if fields]
    if not rows:
        raise ValueError(f"{path} is empty.")
    (_, header), *body = rows
    columns = [name.strip() for name in header]
    for line, fields in body:
        if len(fields) != len(columns):
            raise ValueError(
                f"{path}, line {line}: the row has {len(fields)} fields; the first row has {len(columns)}."
            )
    return columns, [_Record(line, dict(zip(columns, fields))) for line, fields in body]


def _read_jsonl(path: str, text: str) -> tuple[list[str], list[_Record]]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: invalid JSON: {error}.") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}, line {number}: {line.strip()[:40]} is no JSON object.")
        records.append(_Record(number, values))
    return list(records[0].values) if records else [], records


_READERS: dict[str, Callable[[str, str], tuple[list[str], list[_Record]]]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
}
