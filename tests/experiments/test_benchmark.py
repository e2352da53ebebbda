"""Claims about `python -m experiments.benchmark`, through its command line. None of them is about a time."""

import csv
import importlib.util
import json
import subprocess
import sys

import pytest

from tests.experiments.command import ROOT, run

IMPLEMENTATIONS = {
    ("torch", "elman"): {"RNN", "RNN on 1 thread"},
    ("torch", "gru"): {"GRU", "GRU on 1 thread"},
    ("torch", "lstm"): {"LSTM", "LSTM on 1 thread"},
    ("flax.nnx", "elman"): {"SimpleCell"},
    ("flax.nnx", "gru"): {"GRUCell"},
    ("flax.nnx", "lstm"): {"LSTMCell", "OptimizedLSTMCell"},
    ("flax.linen", "elman"): {"SimpleCell"},
    ("flax.linen", "gru"): {"GRUCell"},
    ("flax.linen", "lstm"): {"LSTMCell", "OptimizedLSTMCell"},
    ("equinox", "gru"): {"GRUCell"},
    ("equinox", "lstm"): {"LSTMCell"},
    ("keras", "elman"): {"SimpleRNN"},
    ("keras", "gru"): {"GRU"},
    ("keras", "lstm"): {"LSTM"},
}

# flax.nnx gets another weight, flax.linen a gradient of zero.
TWO_WRONG_PEERS = """
import jax
from absl import app
from experiments import benchmark, benchmark_peers

def other_weight(w, weights, implementation):
    other = [[one._replace(kernel=1.01 * one.kernel) for one in layer] for layer in weights]
    return benchmark_peers._build_nnx(w, other, implementation)

def no_gradient(w, weights, implementation):
    model = benchmark_peers._build_linen(w, weights, implementation)
    return model._replace(apply=lambda params, xs: model.apply(jax.lax.stop_gradient(params), xs))

for name, build in (("flax.nnx", other_weight), ("flax.linen", no_gradient)):
    benchmark_peers.LIBRARIES[name] = benchmark_peers.LIBRARIES[name]._replace(build=build)
app.run(benchmark.main)
"""


def benchmark(*flags, status=0):
    return ended(run("benchmark", *flags), status)


def ended(done, status):
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def read(run_dir):
    with (run_dir / "benchmark.csv").open(newline="") as table:
        return list(csv.DictReader(table))


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    """The rows of all installed peers and cells on a small network of both directions, whose mappings can go wrong."""
    out = tmp_path_factory.mktemp("benchmark") / "run"
    flags = ["--quick", "--grid=2x5x3x4", "--bidirectional", "--repeats=1", "--devices=1"]
    benchmark(*flags, f"--out={out}")
    return read(out)


@pytest.mark.parametrize(("library", "cell"), IMPLEMENTATIONS)
def test_a_peer_computes_what_ours_computes(both_ways, library, cell):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install -r requirements-bench.txt")
    rows = [row for row in both_ways if (row["library"], row["cell"]) == (library, cell)]
    assert {row["implementation"] for row in rows} == IMPLEMENTATIONS[library, cell]
    assert all(0 < float(row["error"]) <= 1e-5 for row in rows)  # 1e-4 is allowed, for long sequences
    assert [row["chosen"] for row in rows].count("True") == 1


@pytest.mark.slow
def test_every_jax_layer_competes_on_all_devices_too(tmp_path):
    flags = ["--quick", "--cells=elman", "--grid=2x4x3x4", "--peers=flax.nnx", "--repeats=1", "--devices=2"]
    benchmark(*flags, f"--out={tmp_path}")
    rows = read(tmp_path)
    assert [row["implementation"] for row in rows] == [
        f"{name}{where}" for where in ("", " on 2 devices") for name in ("ElmanCell", "SimpleCell")
    ]
    assert all(float(row["error"]) <= 1e-5 for row in rows)
    assert min(float(row["ratio"]) for row in rows if row["library"] == "ours") == 1


@pytest.mark.slow
def test_a_peer_that_computes_something_else_is_not_timed(tmp_path):
    flags = ["--cells=elman", "--grid=2x4x3x4", "--peers=flax.nnx,flax.linen", "--quick", "--repeats=1", "--devices=1"]
    command = [sys.executable, "-c", TWO_WRONG_PEERS, *flags, f"--out={tmp_path}"]
    done = ended(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300), status=1)
    nnx, linen = done.stderr.splitlines()[-2:]
    assert nnx.startswith("flax.nnx (SimpleCell) was not timed on elman at 2x4x3x4: its outputs differ from ours by ")
    assert linen == (
        "flax.linen (SimpleCell) was not timed on elman at 2x4x3x4: its kernel gradients differ from ours by 1.0e+00 "
        "of the largest; allowed: 1e-04."
    )
    assert {row["library"] for row in read(tmp_path)} == {"ours"}


def test_a_run_prints_its_table_and_leaves_a_csv_and_a_figure(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "run"
    flags = ["--cells=elman", "--layers=2", "--grid=3x6x2x4,1x2x3x4", "--peers=flax.nnx,torch"]
    flags += ["--passes=step,forward"]
    done = benchmark(
        *flags, "--quick", "--repeats=3", "--devices=1", f"--out={out}"
    )  # quick: torch's threads are not tried out
    lines = done.stdout.splitlines()
    for name in ("forward", "step"):
        start = next(k for k, line in enumerate(lines) if line.startswith(f"elman, {name} "))
        assert lines[start].split()[2:] == ["ours", "flax.nnx", "torch"]
        for point, line in zip(("3x6x2x4", "1x2x3x4"), lines[start + 1 :], strict=False):
            assert line.startswith(point)
            assert line.endswith("%")
            assert line.count("(") == 2
    assert any(line.split() == ["flax.nnx", "torch"] for line in lines)  # geometric means
    assert "Compile time" in done.stdout

    rows = read(out)
    assert len(rows) == 2 * 2 * (1 + 1 + 2)
    assert {row["pass"] for row in rows} == {"forward", "step"}
    for row in rows:
        assert float(row["ms_q25"]) <= float(row["ms"]) <= float(row["ms_q75"])
        assert float(row["product_share"]) > 0
        assert (row["compile_s"] == "") == (row["library"] == "torch")
        assert row["rounds"] == "3"
    assert (out / "figures" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "config.json").read_text())["flags"]["passes"] == ["forward", "step"]
    assert json.loads((out / "machine.json").read_text())["product_gflop_per_s"] > 0
    for path in ("figures/benchmark.png", "benchmark.csv", "machine.json"):
        assert f"  {out / path}" in lines


@pytest.mark.slow
def test_the_profile_is_held_against_the_gradient(tmp_path):
    done = benchmark("--what=profile", "--cells=lstm", "--grid=8x4x3x4", "--repeats=2", f"--out={tmp_path}")
    assert "Goal: profile / plain gradient at most 1.05 at batch 8 or more." in done.stdout
    ours, profile = read(tmp_path)
    assert (ours["library"], profile["library"]) == ("ours", "profile")
    assert (ours["pass"], profile["pass"]) == ("gradient", "gradient")
    assert float(profile["error"]) < 1e-6


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(tmp_path):
    benchmark("--memory", "--cells=elman", "--grid=64x100x8x64", "--peers=flax.nnx", f"--out={tmp_path}")
    rows = read(tmp_path)
    assert [row["library"] for row in rows] == ["ours", "flax.nnx"]
    for row in rows:
        assert float(row["peak_mb"]) > float(row["program_mb"]) > 64 * 100 * 64 * 4 / 1e6  # the states, at the least
        assert row["ms"] == ""
