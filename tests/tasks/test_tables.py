"""Claims about tables of texts of the user: CSV, TSV and JSONL."""

import csv
import io
import json
import re

import pytest

from rnn_jax import tasks

_TEXTS = [
    "plain",
    'with, a comma and a "quote"',
    "two\nlines",
    "a\ttab",
    "Grüße, 世界 🌍",
    '"all quoted"',
    'ends with a quote"',
]


def _rows(count=60):
    """Texts that are all different and hold every nuisance there is, and two labels in turn."""
    return [(f"{_TEXTS[k % len(_TEXTS)]} {k}", ["good", "bad"][k % 2]) for k in range(count)]


def _write(path, rows, columns=("text", "label"), encoding="utf-8"):
    """Writes a table with Python's own writers; the format is that of the file's name."""
    text = io.StringIO(newline="")
    if path.suffix == ".jsonl":
        text.write("".join(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n" for row in rows))
    else:
        csv.writer(text, delimiter={".csv": ",", ".tsv": "\t"}[path.suffix]).writerows([columns, *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def _decoded(task, split):
    source = getattr(task, split)
    examples = [source[index] for index in range(len(source))]
    return [(task.vocabulary.decode(e["tokens"]), task.class_names[e["label"]]) for e in examples]


def _all(task):
    return sorted(row for split in ("train", "validation", "test") for row in _decoded(task, split))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("file_format", ["csv", "tsv", "jsonl"])
def test_a_table_is_read_as_it_was_written(tmp_path, file_format, encoding):
    path = _write(tmp_path / f"t.{file_format}", _rows(), encoding=encoding)
    task = tasks.make_task(f"{file_format}:{path}", tokens="byte")
    assert task.name == f"{file_format}:{path}"
    assert _all(task) == sorted(_rows())
    assert [len(split) for split in (task.train, task.validation, task.test)] == [48, 6, 6]
    assert task.class_names == ("bad", "good")


def test_the_three_formats_make_the_same_task(tmp_path):
    made = [
        tasks.make_task(f"{file_format}:{_write(tmp_path / f't.{file_format}', _rows())}")
        for file_format in ("csv", "tsv", "jsonl")
    ]
    assert len({json.dumps(task.fingerprint) for task in made}) == 1
    assert {task.vocabulary.kind for task in made} == {"word"}


def test_every_class_has_its_share_in_every_split_and_a_seed_draws_it(tmp_path):
    rows = [(f"text {k}", "rare" if k % 10 == 0 else "common") for k in range(200)]
    path = _write(tmp_path / "t.csv", rows)
    first, again, other = (tasks.make_task(f"csv:{path}", split_seed=seed) for seed in (0, 0, 1))
    labels = {split: [label for _, label in _decoded(first, split)] for split in ("train", "validation", "test")}
    assert {split: (found.count("rare"), found.count("common")) for split, found in labels.items()} == {
        "train": (16, 144),
        "validation": (2, 18),
        "test": (2, 18),
    }
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint["test_sha256"] != other.fingerprint["test_sha256"]
    assert first.baseline_score == 0.9


def test_a_test_file_of_one_s_own_is_left_whole(tmp_path):
    path, test_path = (_write(tmp_path / f"{name}.csv", _rows(n)) for name, n in (("train", 40), ("test", 10)))
    task = tasks.make_task(f"csv:{path}", test_path=test_path, tokens="byte")
    assert [len(split) for split in (task.train, task.validation, task.test)] == [36, 4, 10]
    assert _decoded(task, "test") == _rows(10)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 10.5], ("9", "10", "10.5")),
        ([True, False, True], ("false", "true")),
        (["2", 10, " 2 "], ("2", "10")),
    ],
)
def test_labels_of_any_kind_are_classes(tmp_path, labels, names):
    path = _write(tmp_path / "t.jsonl", [(f"text {k}", labels[k % 3]) for k in range(30)])
    assert tasks.make_task(f"jsonl:{path}").class_names == names


def test_columns_have_any_name_and_order(tmp_path):
    rows = [(k, label, text) for k, (text, label) in enumerate(_rows())]
    path = _write(tmp_path / "t.csv", rows, ("id", "stars", "review"))
    task = tasks.make_task(f"csv:{path}", text_column="review", label_column="stars", tokens="byte")
    assert _all(task) == sorted(_rows())


def test_a_plain_tsv_keeps_its_quotes(tmp_path):
    rows = [f'"Well, {k}\tgood\n5" of snow, {k}"\tbad\n' for k in range(20)]
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(rows))
    task = tasks.make_task(f"tsv:{tmp_path / 't.tsv'}", tokens="byte")
    expected = [row for k in range(20) for row in ((f'"Well, {k}', "good"), (f'5" of snow, {k}"', "bad"))]
    assert _all(task) == sorted(expected)


def test_a_field_may_be_longer_than_python_s_csv_allows(tmp_path):
    rows = [(f"{'long ' * 40_000}{k}", str(k % 2)) for k in range(6)]
    limit = csv.field_size_limit()
    task = tasks.make_task(f"csv:{_write(tmp_path / 't.csv', rows)}", max_length=7)
    assert task.seq_len == 7
    assert csv.field_size_limit() == limit


def test_line_ends_of_windows_and_blank_lines_are_nothing(tmp_path):
    lines = [f"text {k}\t{k % 2}" for k in range(6)]
    (tmp_path / "t.tsv").write_bytes("\r\n".join(["text\tlabel", "", *lines, "", ""]).encode())
    (tmp_path / "t.csv").write_bytes("\r\n".join(["text,label", "", *lines, ""]).replace("\t", ",").encode())
    (tmp_path / "t.jsonl").write_bytes(
        "\r\n".join(json.dumps({"text": f"text {k}", "label": k % 2}) + "\r\n" for k in range(6)).encode()
    )
    for file_format in ("tsv", "csv", "jsonl"):
        task = tasks.make_task(f"{file_format}:{tmp_path / 't'}.{file_format}", tokens="byte")
        assert _all(task) == [(f"text {k}", str(k % 2)) for k in range(6)]


def _lines(*bad, first="text,label", rows=8):
    """A table of good lines, and then the bad ones, which begin on line 10."""
    return "\n".join([first, *(f"text {k},{'ab'[k % 2]}" for k in range(rows)), *bad]).encode() + b"\n"


def _json_lines(bad):
    return (
        _lines(first='{"text": "first", "label": "a"}')
        .replace(b"text ", b'{"text": "')
        .replace(b",a\n", b'", "label": "a"}\n')
        .replace(b",b\n", b'", "label": "b"}\n')
        + bad
        + b"\n"
    )


@pytest.mark.parametrize(
    ("file_format", "content", "options", "sentence"),
    [
        ("csv", _lines("one,two,a"), {}, "{}, line 10: the row has 3 fields; the first row has 2."),
        ("csv", _lines('"two\nlines",a', "one"), {}, "{}, line 12: the row has 1 fields; the first row has 2."),
        (
            "csv",
            _lines('"open,a', "x,a"),
            {},
            "{}, line 10: quotes that do not pair up in the row that begins here (*).",
        ),
        (
            "csv",
            _lines('"shut"x,a', "x,a"),
            {},
            "{}, line 10: quotes that do not pair up in the row that begins here (*).",
        ),
        ("csv", _lines("good,a").replace(b"good", b"\xe9"), {}, "{}, line 10: the byte 0xe9 is not UTF-8."),
        ("csv", b"\xef\xbb\xbf" + _lines("g,a").replace(b"g", b"\xff"), {}, "{}, line 10: the byte 0xff is not UTF-8."),
        ("csv", _lines(" ,a"), {}, "{}, line 10: 'text' is empty."),
        ("csv", _lines("x,"), {}, "{}, line 10: 'label' is empty."),
        ("csv", b"", {}, "{} is empty."),
        ("csv", b"text,label\n", {}, "{} has no rows."),
        (
            "csv",
            _lines(first="a,label"),
            {},
            "text_column='text': {} has no column of this name; it has: 'a', 'label'.",
        ),
        (
            "csv",
            _lines(),
            {"label_column": "y"},
            "label_column='y': {} has no column of this name; it has: 'text', 'label'.",
        ),
        (
            "csv",
            _lines(first="text,text"),
            {},
            "text_column='text': {} has 2 columns of this name; it has: 'text', 'text'.",
        ),
        (
            "csv",
            _lines(),
            {"label_column": "text"},
            "text_column and label_column are both 'text'; needed: two different columns.",
        ),
        ("csv", _lines(rows=1), {}, "{} has one class only: label='a' in all 1 rows; needed: 2 or more."),
        (
            "csv",
            _lines("x,c"),
            {},
            "the class 'c' has too few examples to give one to each of train, validation, test: 1; *",
        ),
        ("csv", _lines(), {"tokens": "letter"}, "tokens='letter' is unknown; allowed: word, character, byte."),
        ("csv", _lines(), {"vocab_size": 2}, "vocab_size=2 is out of range; allowed: 3 or more, *"),
        ("csv", _lines(), {"max_length": 0}, "max_length=0 is out of range; allowed: 1 or more."),
        ("csv", _lines(), {"split_seed": -1}, "split_seed=-1 is out of range; allowed: 0 to 2**64 - 1."),
        (
            "csv",
            _lines(),
            {"blanks": 3},
            "blanks=3 is no option of the task 'csv:{}'; it has: text_column, label_column, *",
        ),
        (
            "tsv",
            _lines("one,two,a").replace(b",", b"\t"),
            {},
            "{}, line 10: the row has 3 fields; the first row has 2.",
        ),
        ("jsonl", _json_lines(b"{'text': 1}"), {}, "{}, line 10: invalid JSON: Expecting property name *"),
        ("jsonl", _json_lines(b"[" * 100_000), {}, "{}, line 10: invalid JSON: *"),
        ("jsonl", _json_lines(b'["x", "a"]'), {}, '{}, line 10: ["x", "a"] is no JSON object.'),
        ("jsonl", _json_lines(b'{"text": "x"}'), {}, "{}, line 10: there is no 'label'."),
        ("jsonl", _json_lines(b'{"text": 5, "label": "a"}'), {}, "{}, line 10: 'text' is 5; needed: a string."),
        (
            "jsonl",
            _json_lines(b'{"text": "x", "label": null}'),
            {},
            "{}, line 10: 'label' is null; needed: a string or a number.",
        ),
        ("jsonl", b"\n\n", {}, "{} has no rows."),
    ],
)
def test_what_is_wrong_is_named_in_one_sentence(tmp_path, file_format, content, options, sentence):
    path = tmp_path / f"t.{file_format}"
    path.write_bytes(content)
    pattern = re.escape(sentence.replace("{}", str(path))).replace(r"\ \*", r"\ .*").replace(r"\(\*", r"\(.*")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        tasks.make_task(f"{file_format}:{path}", **options)


def test_a_label_seen_only_in_test_is_named(tmp_path):
    path, test_path = tmp_path / "t.csv", tmp_path / "test.csv"
    path.write_bytes(_lines())
    test_path.write_bytes(_lines("x,c"))
    sentence = f"{test_path}, line 10: the label 'c' is not in the training file; it has: 'a', 'b'."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tasks.make_task(f"csv:{path}", test_path=test_path)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(ValueError, match=f"^there is no file {re.escape(str(path))}\\.$"):
            tasks.make_task(f"csv:{path}")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path / "t.csv", _rows())
    assert len(tasks.make_task("csv:~/t.csv").train) == 48
