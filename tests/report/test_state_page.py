"""The page of the state: what it shows in a browser is what was written, and nothing that was read is run."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from rnn_jax.report import state_page
from rnn_jax.report.state_page import StateArrays

N, UNITS, LAGS = 5000, 256, 200
EVIL = "</script><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rng = np.random.default_rng(0)
    symbols = tuple(EVIL if t == 7 else "<&>\n\u2028 x"[t % 7] for t in range(N))
    state = StateArrays(
        symbols=symbols,
        sequences=np.repeat([0, 1], N // 2),
        kind="character",
        parts={("rnn", part): rng.normal(size=(N, UNITS)) for part in ("c", "h")},
        gates={("rnn", "forget"): rng.random((N, UNITS))},
        labels={"flag": rng.integers(0, 2, N)},
        classes=("<b>", "y"),
        answers=np.tile([1, 0], (N, 1)),
        probabilities=np.tile([0.8, 0.2], (N, 1)),
        connectivity=np.tile(-0.01 * np.arange(LAGS) - 300, (N, 1)),
    )
    folder = tmp_path_factory.mktemp("<i>run")
    state_page.save_state(folder, state)
    return state, state_page.write_page(folder, "rnn", 3)


def test_what_is_saved_is_loaded(written):
    state, page = written
    loaded = state_page.load_state(page.parent)
    for name in ("symbols", "kind", "classes"):
        assert getattr(loaded, name) == getattr(state, name)
    assert list(loaded.parts) == list(state.parts)
    np.testing.assert_array_equal(loaded.parts["rnn", "h"], state.parts["rnn", "h"])


def test_the_page_needs_no_network_and_holds_no_element_of_what_it_shows(written):
    text = written[1].read_text(encoding="utf-8")
    assert len(re.findall("<script", text)) == len(re.findall("</script>", text)) == 2
    assert "<i>" not in text
    assert not re.search(r"https?:|src=|@import", text)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_browser_shows_the_values_of_a_text_of_5000_tokens(written, tmp_path):
    state, page = written
    token, unit = 2700, 41
    address = f"{page.as_uri()}#part=1&unit={unit}&token={token}&click=1"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=200).stdout
    status = re.search(r'<div id="status"[^>]*>(.*?)</div>', shown, re.DOTALL).group(1)
    value = float(re.search(rf"rnn h\[{unit}\] = (\S+)", status).group(1))
    np.testing.assert_allclose(value, state.parts["rnn", "h"][token, unit], rtol=2e-3)
    gate = float(re.search(r"forget (\S+)", status).group(1))
    np.testing.assert_allclose(gate, state.gates["rnn", "forget"][token, unit], atol=0.01)
    assert "answer here: “y” 0.80, “&lt;b&gt;” 0.20" in status
    assert f"gradient of the answer at token {token}: 1.0 of its largest" in status
    assert "<title>The state along a text: &lt;i&gt;run" in shown
    assert len(re.findall(r"<(?:span|div|option|button|canvas)\b", shown)) < 2 * UNITS + 100  # none for each token


def test_units_are_sorted_by_what_closed_forms_say():
    rng = np.random.default_rng(1)
    steps, r = 20_000, 0.9
    noise = rng.normal(size=steps)
    slow = np.zeros(steps)
    for t in range(1, steps):
        slow[t] = r * slow[t - 1] + noise[t]
    two_sided = np.where(np.arange(steps) % 2, 1.0, -1.0)
    order = state_page.unit_order(np.stack([slow, noise, two_sided], axis=1), np.zeros(steps, int))
    np.testing.assert_allclose(order["memory length"][0], -1 / np.log(r), rtol=0.1)
    assert order["memory length"][2] == 0  # the correlation is -1
    np.testing.assert_allclose(order["variance"][1:], [1.0, 1.0], rtol=0.05)
    assert order["saturation"][2] == 1 > 0.01 > order["saturation"][1]
