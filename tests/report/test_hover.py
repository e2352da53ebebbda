"""Claims about the values that a figure's SVG file shows at the pointer."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from rnn_jax.report.hover import say, with_hover

SVG = "{http://www.w3.org/2000/svg}"


def titled(figure):
    """The shapes of a figure as (their element, what they say)."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg")
    root = ElementTree.fromstring(with_hover(figure, drawn.getvalue()))
    return root, [(shape, shape.findtext(f"{SVG}title")) for shape in root.iterfind(f"{SVG}g[@class='hover']/*")]


def places(root):
    """Where matplotlib itself put the marks of lines."""
    return [(float(use.get("x")), float(use.get("y"))) for use in root.iterfind(f".//{SVG}g[@id='marks']//{SVG}use")]


@pytest.mark.parametrize(("scale", "dpi"), [("linear", 100), ("log", 150)])
def test_a_mark_says_its_values_where_it_is_drawn(scale, dpi):
    figure = Figure(figsize=(3, 2), dpi=dpi, layout="constrained")
    ax = figure.subplots()
    ax.plot([1, 2, 5], [3.0, np.nan, 700.25], "o", label="lstm  (a remark)", gid="marks")
    ax.set(xscale=scale, yscale=scale, xlabel="lag  (steps)", ylabel="norm$_t$")
    root, shapes = titled(figure)
    assert [text for _, text in shapes] == ["lstm\nnormt 3\nlag 1", "lstm\nnormt 700.2\nlag 5"]
    disks = [(float(shape.get("cx")), float(shape.get("cy"))) for shape, _ in shapes]
    np.testing.assert_allclose(disks, places(root), atol=0.1)


def test_a_strip_says_the_values_of_all_lines_at_its_place_and_strips_fill_the_frame():
    figure = Figure(figsize=(3, 2))
    ax = figure.subplots()
    ax.plot([0, 1, 2, 3], [1.5, np.nan, -np.inf, 4.0], marker="s", label="elman", gid="marks")
    ax.plot([0, 2], [8.0, 9.0], label="_gru")
    ax.plot([0, 2], [5.0, 5.0])  # it has no name
    ax.axhline(2.0, label="a level")
    ax.set(xlim=(0, 3), xlabel="step")
    root, shapes = titled(figure)
    assert [text for _, text in shapes] == ["step 0\nelman: 1.5\ngru: 8", "step 2\ngru: 9", "step 3\nelman: 4"]
    left = [float(shape.get("x")) for shape, _ in shapes]
    right = [x + float(shape.get("width")) for x, (shape, _) in zip(left, shapes)]
    np.testing.assert_allclose(left[1:], right[:-1], atol=0.11)
    ((first, _), (last, _)) = places(root)
    np.testing.assert_allclose([left[0], right[-1]], [first, last], atol=0.11)


def test_long_lines_have_few_strips_and_large_maps_few_cells():
    figure = Figure()
    lines, image = figure.subplots(1, 2)
    lines.plot(np.arange(100_000), np.arange(100_000), label="a long line")
    image.imshow(np.arange(10_000.0).reshape(100, 100))
    _, shapes = titled(figure)
    texts = [text for _, text in shapes]
    assert {"0\na long line: 0", "99,999\na long line: 99,999"} <= set(texts)
    assert len(texts) < 700


def test_a_heat_map_says_the_value_of_a_cell_in_the_words_of_its_axes():
    figure = Figure()
    ax = figure.subplots()
    ax.imshow(np.ma.masked_invalid([[1.0, 2.5], [np.nan, 4.0]]), origin="lower")
    ax.set_xlabel("lag")
    ax.fmt_ydata = lambda row: f"step {10 * round(row)}"
    _, shapes = titled(figure)
    said = {text: (float(shape.get("x")), float(shape.get("y"))) for shape, text in shapes}
    assert list(said) == ["step 0\nlag 0\n1", "step 0\nlag 1\n2.5", "step 10\nlag 0\nnone", "step 10\nlag 1\n4"]
    assert said["step 0\nlag 0\n1"][0] < said["step 0\nlag 1\n2.5"][0]
    assert said["step 0\nlag 0\n1"][1] > said["step 10\nlag 1\n4"][1]  # down is larger


def test_marks_may_have_words_of_their_own():
    figure = Figure()
    (line,) = figure.subplots().plot([1, 2], [3, 4], "o")
    say(line, ["first", "<second>"])
    root, shapes = titled(figure)
    assert [text for _, text in shapes] == ["first", "<second>"]
    assert not re.search("<second>", ElementTree.tostring(root, encoding="unicode"))
