"""One page on the state of a network along a text: it opens from disk without a network, in any browser.

    python -c "from rnn_jax.report.state_page import write_page; write_page('runs/...')"

It reads what `experiments.inspect_state` has written to a run directory: state.npz and state_probes.csv. Text and heat
map are canvases of which only the visible part is drawn, so that 5,000 tokens of 256 units are as quick as 50. Whatever
a text holds, none of it is run: it is data in JSON, and is drawn or set as text.
"""

import base64
import csv
import dataclasses
import html
import json
import pathlib
from typing import Any

import numpy as np

from rnn_jax.report import read

_DECADES = 6.0  # of connectivity that are kept, below the largest value of a position


@dataclasses.dataclass(frozen=True)
class StateArrays:
    """What a network held along N tokens of one or several sequences.

    Attributes:
      symbols: the text of each token.
      sequences: of each token the number of its sequence, int `[N]`.
      kind: of the tokens, "word", "character", ...
      parts: by (layer, part of its carry), `[N, units]`.
      gates: by (layer, gate), `[N, units]`, within 0 and 1 or -1 and 1.
      labels: of known properties, int `[N]`, -1 where unknown.
      classes: names of the answers; none if it does not answer at each token.
      answers, probabilities: of the likeliest answers behind each token, the likeliest first, `[N, answers]`.
      connectivity: log10 of the gradient of the likeliest answer with regard to the inputs of the top layer, by lag,
        `[N, lags]`; no lags if there is none.
    """

    symbols: tuple[str, ...]
    sequences: np.ndarray
    kind: str
    parts: dict[tuple[str, str], np.ndarray]
    gates: dict[tuple[str, str], np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]
    answers: np.ndarray
    probabilities: np.ndarray
    connectivity: np.ndarray


def save_state(run_dir: read.StrPath, state: StateArrays) -> pathlib.Path:
    """Writes state.npz and returns its path."""
    path = pathlib.Path(run_dir) / "state.npz"
    arrays = {f"carry|{layer}|{part}": values for (layer, part), values in state.parts.items()}
    arrays |= {f"gate|{layer}|{gate}": values for (layer, gate), values in state.gates.items()}
    arrays |= {f"label|{name}": values for name, values in state.labels.items()}
    texts = {"symbols": list(state.symbols), "classes": list(state.classes), "kind": state.kind}
    arrays["texts"] = np.array(json.dumps(texts))
    for name in ("sequences", "answers", "probabilities", "connectivity"):
        arrays[name] = getattr(state, name)
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def load_state(run_dir: read.StrPath) -> StateArrays:
    """Reads what `save_state` wrote; raises ValueError if there is none."""
    path = pathlib.Path(run_dir) / "state.npz"
    if not path.exists():
        raise ValueError(
            f"{str(run_dir)!r} has no state.npz; run first: python -m experiments.inspect_state --run={run_dir}"
        )
    with np.load(path) as arrays:
        found: dict[str, dict[tuple[str, str], np.ndarray]] = {"carry": {}, "gate": {}}
        labels: dict[str, np.ndarray] = {}
        for key in arrays.files:
            what, *names = key.split("|")
            if what in found:
                found[what][names[0], names[1]] = arrays[key]
            elif what == "label":
                labels[names[0]] = arrays[key]
        texts = json.loads(str(arrays["texts"]))
        rest = {name: arrays[name] for name in ("sequences", "answers", "probabilities", "connectivity")}
    return StateArrays(
        symbols=tuple(texts["symbols"]),
        classes=tuple(texts["classes"]),
        kind=texts["kind"],
        parts=found["carry"],
        gates=found["gate"],
        labels=labels,
        **rest,
    )


def load_probes(run_dir: read.StrPath) -> list[dict[str, str]]:
    """Reads the rows of state_probes.csv, all values as text; none if there is no such file."""
    path = pathlib.Path(run_dir) / "state_probes.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def unit_order(values: np.ndarray, sequences: np.ndarray) -> dict[str, np.ndarray]:
    """Returns for each unit what units are sorted by.

    Args:
      values: `[N, units]`.
      sequences: int `[N]`.

    Returns:
      "variance"; "saturation", the share of tokens at which |value| is above 0.9 of its largest; and "memory length",
      -1 / ln(r) tokens for an autocorrelation r from one token to the next, 0 where r is not positive. `[units]` each.
    """
    values = np.asarray(values, np.float64)
    largest = np.abs(values).max(axis=0)
    centered = values - values.mean(axis=0)
    together = sequences[1:] == sequences[:-1]
    power = np.sum(np.square(centered), axis=0)
    along = np.sum(centered[1:][together] * centered[:-1][together], axis=0)
    pairs = max(1, int(together.sum())) / len(values)
    correlation = np.clip(along / np.where(power > 0, power, 1.0) / pairs, 0.0, 1 - 1e-6)
    with np.errstate(divide="ignore"):
        memory = np.where(correlation > 0, -1.0 / np.log(correlation), 0.0)
    saturation = np.where(largest > 0, np.mean(np.abs(values) > 0.9 * largest, axis=0), 0.0)
    return {"variance": values.var(axis=0), "saturation": saturation, "memory length": memory}


def write_page(run_dir: read.StrPath, layer: str | None = None, unit: int | None = None) -> pathlib.Path:
    """Writes state.html into a run directory and returns its path.

    Args:
      run_dir: with state.npz.
      layer: that the page opens at; that of the first part by default.
      unit: of its first part; by default the one that reads the first property of state_probes.csv best.

    Raises:
      ValueError: if there is no state.npz.
    """
    state, probes = load_state(run_dir), load_probes(run_dir)
    keys = list(state.parts)
    first = next((k for k, (name, _) in enumerate(keys) if name == layer), 0)
    flags: list[dict[str, Any]] = []
    for row in probes:
        if row["probe"] == "unit" and (row["layer"], row["part"]) in state.parts:
            text = (
                f"{row['property']} ({row['label']}): unit {row['unit']} of {_name(row['layer'], row['part'])},"
                f" accuracy {float(row['accuracy']):.3f}, chance {float(row['chance']):.3f},"
                f" control {float(row['control']):.3f}"
            )
            flags.append({"text": text, "part": keys.index((row["layer"], row["part"])), "unit": int(row["unit"])})
    if unit is None:
        unit = next((flag["unit"] for flag in flags if flag["part"] == first), 0)
    data = {
        "kind": state.kind,
        "symbols": list(state.symbols),
        "sequences": state.sequences.tolist(),
        "parts": [_part(layer, part, values, state.sequences) for (layer, part), values in state.parts.items()],
        "gates": [_gate(layer, gate, values) for (layer, gate), values in state.gates.items()],
        "classes": list(state.classes),
        "answers": _encoded(state.answers, np.uint16),
        "probabilities": _encoded(np.round(255 * state.probabilities), np.uint8),
        "ranks": state.answers.shape[1],
        "window": state.connectivity.shape[1],
        "connectivity": _encoded(_shares(state.connectivity), np.uint8),
        "decades": _DECADES,
        "flags": flags,
        "first": {"part": first, "unit": unit},
    }
    title = f"The state along a text: {pathlib.Path(run_dir).resolve().name}"
    content = json.dumps(data).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    page = _PAGE.replace("%TITLE%", html.escape(title)).replace("%PROGRAM%", _PROGRAM).replace("%DATA%", content)
    path = pathlib.Path(run_dir) / "state.html"
    path.write_text(page, encoding="utf-8")
    return path


def _name(layer: str, part: str) -> str:
    return f"{layer} {part}".strip()


def _part(layer: str, part: str, values: np.ndarray, sequences: np.ndarray) -> dict[str, Any]:
    order = unit_order(values, sequences)
    return {
        "layer": layer,
        "name": _name(layer, part),
        "units": values.shape[1],
        "data": _encoded(values, np.float16),
        "sorts": {name: np.round(scores, 4).tolist() for name, scores in order.items()},
    }


def _gate(layer: str, gate: str, values: np.ndarray) -> dict[str, Any]:
    low = -1.0 if values.min() < 0 else 0.0
    return {
        "layer": layer,
        "name": gate,
        "units": values.shape[1],
        "low": low,
        "data": _encoded(np.round(255 * np.clip((values - low) / (1.0 - low), 0, 1)), np.uint8),
    }


def _shares(log10_norm: np.ndarray) -> np.ndarray:
    """Returns 255 for the largest gradient of a position, 0 for one that is `_DECADES` below it, or less."""
    if not log10_norm.size:
        return log10_norm
    largest = log10_norm.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        below = np.where(np.isfinite(log10_norm), log10_norm - largest, -_DECADES)
    return np.round(255 * np.clip(1 + below / _DECADES, 0, 1))


def _encoded(values: np.ndarray, dtype: Any) -> str:
    little = np.ascontiguousarray(values).astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%TITLE%</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 70rem; margin: 1.5rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 0.5rem; } h2 { font-size: 1.05rem; margin: 1rem 0 0.2rem; }
.note { color: #555; font-size: 0.88rem; margin: 0.2rem 0; }
.bar { display: flex; flex-wrap: wrap; gap: 0.4rem 1rem; align-items: center; }
#pane { height: 20rem; overflow-y: auto; border: 1px solid #ccc; position: relative; cursor: pointer; }
#pane canvas { position: sticky; top: 0; display: block; }
#heat, #lines { display: block; outline: 1px solid #ccc; cursor: crosshair; }
#from { width: 100%; }
#status { min-height: 3rem; white-space: pre-wrap; font-size: 0.92rem; background: #f5f5f5;
  padding: 0.3rem 0.6rem; margin: 0.4rem 0; position: sticky; top: 0; z-index: 2; overflow-wrap: anywhere; }
#flags button { display: block; margin: 0.15rem 0; font: inherit; font-size: 0.88rem; text-align: left;
  cursor: pointer; }
input[type=number] { width: 5rem; }
</style>
</head>
<body>
<h1>%TITLE%</h1>
<div class="bar">
<label>State <select id="part"></select></label>
<label>Units by <select id="sort"></select></label>
<label>Unit <select id="unit"></select></label>
<label>or number <input id="number" type="number" min="0" step="1"></label>
<button id="back" type="button" hidden>Back to the unit</button>
</div>
<div id="status" role="status"></div>
<h2 id="shown"></h2>
<div id="pane"><canvas id="text" role="img" aria-label="The text, colored"></canvas><div id="space"></div></div>
<p class="note">Blue is below 0, orange above; the darkest is the largest size of this unit. Move over a token for its
values; click it to see how strongly the answer there depends on each earlier token (the gradient of its log-probability
with regard to what the top layer read).</p>
<h2>Units and time</h2>
<div><canvas id="heat" role="img" aria-label="A row a unit, a column a token"></canvas></div>
<input id="from" type="range" min="0" value="0" step="1" aria-label="First token of the map">
<p class="note">A row a unit, in the order chosen above, each by its own largest size; a column a token. Click a row to
choose its unit.</p>
<h2>The unit and its gates</h2>
<div><canvas id="lines" role="img" aria-label="Value and gates of the unit"></canvas></div>
<p class="note" id="legend"></p>
<h2>What single units read</h2>
<div id="flags"></div>
<p class="note">Accuracy is of sequences that unit and threshold were not chosen on; chance is the commoner label; the
control is a unit chosen for labels that were exchanged between sequences.</p>
<script type="application/json" id="data">%DATA%</script>
<script>%PROGRAM%</script>
</body>
</html>
"""

_PROGRAM = r"""
"use strict";
const D = JSON.parse(document.getElementById("data").textContent), N = D.symbols.length;
const $ = id => document.getElementById(id);
function bytes(text) {
  const decoded = atob(text), result = new Uint8Array(decoded.length);
  for (let i = 0; i < decoded.length; i++) result[i] = decoded.charCodeAt(i);
  return result;
}
const words16 = text => new Uint16Array(bytes(text).buffer);
function half(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, rest = bits & 1023;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + rest / 1024) * 2 ** (exponent - 15) : rest * 2 ** -24);
}
const HALF = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) HALF[bits] = half(bits);
const decoded = {};
function part(k) {  // decoded when it is first looked at
  if (!decoded[k]) {
    const bits = words16(D.parts[k].data), units = D.parts[k].units;
    const values = new Float32Array(bits.length), largest = new Float32Array(units);
    for (let i = 0, u = 0; i < values.length; i++) {
      const value = values[i] = HALF[bits[i]];
      if (Math.abs(value) > largest[u]) largest[u] = Math.abs(value);
      if (++u === units) u = 0;
    }
    decoded[k] = {values, units, largest};
  }
  return decoded[k];
}
const answers = words16(D.answers), probabilities = bytes(D.probabilities), connected = bytes(D.connectivity);
function gateValue(gate, t, u) {
  gate.bytes ??= bytes(gate.data);
  return gate.low + (1 - gate.low) * gate.bytes[t * gate.units + u] / 255;
}

const now = {part: D.first.part, unit: D.first.unit, sort: "number", hover: -1, clicked: -1, from: 0};
let order = [];
const shownSymbol = s => s === " " ? "\u2423" : s === "\n" ? "\u23ce" : s === "\t" ? "\u21e5" : s;

function color(share) {  // -1 to 1: blue, white, orange
  const s = Math.max(-1, Math.min(1, share)), a = Math.abs(s);
  return s < 0 ? [255 - 255 * a, 255 - 141 * a, 255 - 77 * a] : [255 - 42 * a, 255 - 161 * a, 255 - 255 * a];
}
const css = c => `rgb(${c.map(Math.round).join(",")})`;
function valueAt(t) { const p = part(now.part); return p.values[t * p.units + now.unit]; }
function connection(t) {  // 0 to 1 on a logarithmic scale, -1 where there is none
  const lag = now.clicked - t;
  return lag < 0 || lag >= D.window ? -1 : connected[now.clicked * D.window + lag] / 255;
}

// The text: where each token stands, and the part of it that is seen.
const LINE = 24, CELL = 9.1;
const place = {x: new Float32Array(N), w: new Float32Array(N), line: new Int32Array(N), first: [0]};
function layOut() {
  const width = $("pane").clientWidth - 4, spaced = D.kind === "word" || D.kind === "number";
  let x = 2, line = 0;
  place.first = [0];
  for (let t = 0; t < N; t++) {
    const w = CELL * (Math.max(1, D.symbols[t].length) + (spaced ? 1 : 0));
    const broken = t > 0 && (D.sequences[t] !== D.sequences[t - 1] || D.symbols[t - 1] === "\n");
    if (broken || x + w > width && x > 2) { x = 2; line++; place.first[line] = t; }
    place.x[t] = x; place.w[t] = w; place.line[t] = line; x += w;
  }
  $("space").style.height = Math.max(0, (line + 1) * LINE - $("pane").clientHeight) + "px";
}
function prepared(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.parentElement.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.width = width + "px"; canvas.style.height = height + "px";
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  return [g, width];
}
function drawText() {
  const pane = $("pane"), [g] = prepared($("text"), pane.clientHeight);
  const top = pane.scrollTop, start = Math.floor(top / LINE), stop = Math.ceil((top + pane.clientHeight) / LINE);
  const largest = part(now.part).largest[now.unit] || 1;
  g.font = "15px ui-monospace, Menlo, Consolas, monospace"; g.textBaseline = "middle";
  for (let t = place.first[Math.min(start, place.first.length - 1)]; t < N && place.line[t] <= stop; t++) {
    const y = place.line[t] * LINE - top;
    let fill = [255, 255, 255];
    if (now.clicked < 0) fill = color(valueAt(t) / largest);
    else if (connection(t) >= 0) { const a = connection(t); fill = [255 - 255 * a, 255 - 97 * a, 255 - 140 * a]; }
    g.fillStyle = css(fill); g.fillRect(place.x[t], y + 1, place.w[t], LINE - 2);
    if (t === now.clicked || t === now.hover) {
      g.strokeStyle = "#000"; g.lineWidth = t === now.clicked ? 2 : 1;
      g.strokeRect(place.x[t] + 1, y + 2, place.w[t] - 2, LINE - 4);
    }
    g.fillStyle = "#111";
    g.fillText(D.symbols[t] === " " ? " " : shownSymbol(D.symbols[t]), place.x[t] + 2, y + LINE / 2);
  }
}

// The map: as many columns as have room.
const COLUMN = 7;
const small = document.createElement("canvas");
const columns = () => Math.max(1, Math.min(N, Math.floor($("heat").parentElement.clientWidth / COLUMN)));
const heatHeight = () => Math.max(160, Math.min(512, part(now.part).units * 10));
function drawHeat() {
  const p = part(now.part), count = columns(), height = heatHeight(), [g] = prepared($("heat"), height);
  small.width = count; small.height = p.units;
  const image = new ImageData(count, p.units);
  for (let row = 0; row < p.units; row++) {
    const u = order[row], largest = p.largest[u] || 1;
    for (let k = 0; k < count && now.from + k < N; k++) {
      const c = color(p.values[(now.from + k) * p.units + u] / largest), at = 4 * (row * count + k);
      image.data[at] = c[0]; image.data[at + 1] = c[1]; image.data[at + 2] = c[2]; image.data[at + 3] = 255;
    }
  }
  small.getContext("2d").putImageData(image, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(small, 0, 0, count * COLUMN, height);
  const tall = height / p.units;
  g.strokeStyle = "#000"; g.lineWidth = 1.5;
  g.strokeRect(0, order.indexOf(now.unit) * tall, count * COLUMN, tall);
  for (const t of [now.hover, now.clicked]) if (t >= now.from && t < now.from + count) {
    g.strokeRect((t - now.from) * COLUMN, 0, COLUMN, height);
  }
}
const LINE_COLORS = ["#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"];
function myGates() {
  const mine = D.parts[now.part];
  return D.gates.filter(gate => gate.layer === mine.layer && gate.units === mine.units);
}
function drawLines() {
  const HEIGHT = 170, [g, width] = prepared($("lines"), HEIGHT), count = columns();
  const largest = part(now.part).largest[now.unit] || 1, y = s => 8 + (HEIGHT - 30) * (1 - (s + 1) / 2);
  g.strokeStyle = "#ccc"; g.lineWidth = 1;
  for (const s of [-1, 0, 1]) { g.beginPath(); g.moveTo(0, y(s)); g.lineTo(width, y(s)); g.stroke(); }
  const curve = (read, ink, wide) => {
    g.strokeStyle = ink; g.lineWidth = wide; g.beginPath();
    for (let k = 0; k < count && now.from + k < N; k++) {
      const t = now.from + k, begins = k === 0 || D.sequences[t] !== D.sequences[t - 1];
      g[begins ? "moveTo" : "lineTo"]((k + 0.5) * COLUMN, y(read(t)));
    }
    g.stroke();
  };
  myGates().forEach((gate, k) => curve(t => gateValue(gate, t, now.unit), LINE_COLORS[k % 6], 1.2));
  curve(t => valueAt(t) / largest, "#0072B2", 2.2);
  g.font = "11px ui-monospace, monospace"; g.fillStyle = "#333"; g.textBaseline = "bottom";
  if (D.kind !== "word") for (let k = 0; k < count && now.from + k < N; k++) {
    g.fillText(shownSymbol(D.symbols[now.from + k]), k * COLUMN, HEIGHT - 2);
  }
}
function legend() {
  const box = $("legend");
  box.textContent = "";
  const add = (text, ink) => {
    const span = document.createElement("span");
    span.textContent = text; span.style.color = ink; span.style.marginRight = "1.2em"; box.append(span);
  };
  add(`\u2014 ${D.parts[now.part].name}, over ${(part(now.part).largest[now.unit]).toFixed(3)}`, "#0072B2");
  myGates().forEach((gate, k) => add(`\u2014 ${gate.name} gate`, LINE_COLORS[k % 6]));
}
function status() {
  const t = now.hover >= 0 ? now.hover : now.clicked;
  if (t < 0) { $("status").textContent = `${N} tokens. Move over the text or the map.`; return; }
  let text = `token ${t} \u201c${shownSymbol(D.symbols[t])}\u201d   ${D.parts[now.part].name}[${now.unit}] = `
    + valueAt(t).toPrecision(4);
  for (const gate of myGates()) text += `   ${gate.name} ${gateValue(gate, t, now.unit).toFixed(2)}`;
  if (D.ranks) {
    const said = [];
    for (let k = 0; k < D.ranks; k++) {
      said.push(`\u201c${shownSymbol(D.classes[answers[t * D.ranks + k]])}\u201d `
        + (probabilities[t * D.ranks + k] / 255).toFixed(2));
    }
    text += `\nanswer here: ${said.join(", ")}`;
  }
  if (now.clicked >= 0 && connection(t) >= 0) {
    const below = (1 - connection(t)) * D.decades;
    const share = connection(t) > 0 ? (10 ** -below).toPrecision(2) : `below 1e-${D.decades}`;
    text += `\ngradient of the answer at token ${now.clicked}: ${share} of its largest`;
  }
  $("status").textContent = text;
}
let asked = false;
function redraw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; drawAll(); });
}
function drawAll() {
  $("shown").textContent = now.clicked < 0 ? `The text, colored by unit ${now.unit} of ${D.parts[now.part].name}`
    : `What the answer at token ${now.clicked} depends on: green, by powers of ten`;
  $("back").hidden = now.clicked < 0;
  drawText(); drawHeat(); drawLines(); status();
}

// The order of the units and the controls.
function sortUnits() {
  const p = D.parts[now.part], scores = p.sorts[now.sort];
  order = Array.from({length: p.units}, (_, u) => u);
  if (scores) order.sort((a, b) => scores[b] - scores[a] || a - b);
  $("unit").textContent = "";
  for (const u of order) {
    const option = document.createElement("option");
    option.value = u; option.textContent = scores ? `${u}: ${scores[u].toPrecision(3)}` : u;
    $("unit").append(option);
  }
  choose(now.unit < p.units ? now.unit : order[0]);
}
function choose(unit) {
  const p = D.parts[now.part];
  if (!Number.isInteger(unit) || unit < 0 || unit >= p.units) {
    $("status").textContent = `There is no unit ${unit}; allowed: 0 to ${p.units - 1}.`;
    return;
  }
  now.unit = unit; $("unit").value = unit; $("number").value = unit; $("number").max = p.units - 1;
  legend(); redraw();
}
function choosePart(k) { now.part = k; $("part").value = k; sortUnits(); }
function showAt(t) {
  now.from = Math.max(0, Math.min(N - columns(), t - Math.floor(columns() / 2)));
  $("from").value = now.from;
}
function click(t) {
  now.clicked = D.window && t !== now.clicked ? t : -1;
  showAt(t); redraw();
}
D.parts.forEach((p, k) => $("part").append(new Option(p.name, k)));
for (const name of ["number", ...Object.keys(D.parts[0].sorts)]) $("sort").append(new Option(name, name));
for (const flag of D.flags) {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = flag.text;
  button.addEventListener("click", () => {
    now.unit = flag.unit; now.clicked = -1;
    choosePart(flag.part); scrollTo(0, 0);
  });
  $("flags").append(button);
}
if (!D.flags.length) $("flags").textContent = "No property was read.";
$("part").addEventListener("change", event => choosePart(Number(event.target.value)));
$("sort").addEventListener("change", event => { now.sort = event.target.value; sortUnits(); });
$("unit").addEventListener("change", event => choose(Number(event.target.value)));
$("number").addEventListener("change", event => choose(Number(event.target.value)));
$("back").addEventListener("click", () => { now.clicked = -1; redraw(); });
$("from").addEventListener("input", event => { now.from = Number(event.target.value); redraw(); });
$("pane").addEventListener("scroll", redraw);

function tokenAt(event) {
  const box = $("text").getBoundingClientRect(), x = event.clientX - box.left;
  const line = Math.floor((event.clientY - box.top + $("pane").scrollTop) / LINE);
  if (line < 0 || line >= place.first.length) return -1;
  for (let t = place.first[line]; t < N && place.line[t] === line; t++) {
    if (x >= place.x[t] && x < place.x[t] + place.w[t]) return t;
  }
  return -1;
}
const columnAt = event => {
  const t = now.from + Math.floor((event.clientX - $("heat").getBoundingClientRect().left) / COLUMN);
  return t < Math.min(N, now.from + columns()) ? t : -1;
};
const hover = t => { if (t !== now.hover) { now.hover = t; redraw(); } };
$("text").addEventListener("mousemove", event => hover(tokenAt(event)));
$("text").addEventListener("click", event => { const t = tokenAt(event); if (t >= 0) click(t); });
for (const id of ["heat", "lines"]) {
  $(id).addEventListener("mousemove", event => hover(columnAt(event)));
  $(id).addEventListener("mouseleave", () => hover(-1));
}
$("text").addEventListener("mouseleave", () => hover(-1));
$("heat").addEventListener("click", event => {
  const row = Math.floor((event.clientY - $("heat").getBoundingClientRect().top) / heatHeight() * order.length);
  if (row >= 0 && row < order.length) choose(order[row]);
});
addEventListener("resize", () => { layOut(); $("from").max = Math.max(0, N - columns()); redraw(); });

// A view has an address: state.html#part=0&unit=3&token=7&click=1
function fromAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const integer = (name, old) => wanted.has(name) ? Number(wanted.get(name)) : old;
  now.part = Math.min(D.parts.length - 1, Math.max(0, integer("part", now.part)));
  now.unit = integer("unit", now.unit);
  if (wanted.has("sort")) now.sort = $("sort").value = wanted.get("sort");
  choosePart(now.part);
  const t = integer("token", -1);
  if (t >= 0 && t < N) {
    now.hover = t; showAt(t);
    $("pane").scrollTop = place.line[t] * LINE - $("pane").clientHeight / 2;
    if (wanted.get("click") === "1") click(t);
  }
  drawAll();
}
layOut();
$("from").max = Math.max(0, N - columns());
fromAddress();
addEventListener("hashchange", fromAddress);
"""
