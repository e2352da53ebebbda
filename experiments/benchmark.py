r"""How fast are our layers against what people use now?

Times `rnn_jax.RNN` beside torch.nn, flax.nnx.RNN, flax.linen.RNN, Equinox cells under lax.scan, and Keras on JAX, all
with the same weights and the same inputs.

    pip install -r requirements-bench.txt
    python -m experiments.benchmark                                                   (30 min on 2 quiet CPU cores)
    python -m experiments.benchmark --quick                                           (1 min)
    python -m experiments.benchmark --cells=lstm --grid=32x128x64x64,1x512x64x128 --peers=torch,keras --passes=step
    python -m experiments.benchmark --grid=32x128x64x64 --layers=2 --bidirectional
    python -m experiments.benchmark --what=profile        what flow.gradient_profile adds to the gradient  (10 min)
    python -m experiments.benchmark --memory              peak memory, a process for each number           (30 min)

A grid point BxTxIxH is a batch of B sequences of T steps, I input features and H hidden features. The passes are
`forward` (outputs only), `gradient` (forward and backward, of every parameter) and `step` (that, and Adam).

How it is kept fair:

* Our weights are copied into each peer (the mapping is in its `_build_*` function). A peer whose outputs or kernel
  gradients differ from ours by more than 1e-4 of their largest entry is not timed, and the exit status is 1.
* Everyone computes in float32, also where a GPU would by default round the factors of products to TF32.
* Everyone gets `[batch, time, features]`, batch first, and computes 0.5 mean((ys - targets)^2). JAX peers are
  under one plain `jax.jit` with the parameters as argument, donated in `step`; Adam is optax's, and torch's own, fused.
* Of several ways of one library to the same result the fastest counts: Flax's LSTMCell and OptimizedLSTMCell, torch
  with its default number of threads and with one, all of JAX on one device and, by the same two lines (the batch put
  on a mesh, and the mesh set), on a device for each core (`--devices`).
* Turns go round, A B C A B C ..., after two calls each to warm up. A turn repeats short calls, up to 50 times,
  to last 20 ms. A number is the median over rounds, a ratio the median of the ratios of each round.
* torch's threads spin after each call and take the cores from the next library: on 2 busy cores JAX took 15 to 23 ms
  right after torch and 8 after itself, and torch 22 to 50 ms. With OMP_WAIT_POLICY=passive they sleep, JAX takes 7 to
  8 ms after torch too, and torch 13; but on quiet cores torch alone may do better spinning. So the run first compares
  torch alone under both policies and takes the better one for torch; if that is not `passive`, it waits 20 ms after
  each turn of torch. `--quick` takes `passive` unseen, and a policy in the environment is left as it is.

It writes config.json, machine.json, benchmark.csv (a row a measurement), figures/benchmark.png and report.html, and
prints where.
"""

import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import tqdm
from absl import flags, logging

import rnn_jax
from experiments import running
from experiments.benchmark_contestants import PASSES, PROFILE
from experiments.benchmark_memory import memory_workload
from experiments.benchmark_peers import CELL_GATES, LIBRARIES, Workload
from experiments.benchmark_results import Measurement, print_goal, print_tables, save
from experiments.benchmark_timing import choose_wait_policy, product_rate, time_workload
from rnn_jax.memory import check_memory, host_memory
from rnn_jax.report.run_report import write_report
from rnn_jax.training import run_directory

_WHAT = flags.DEFINE_enum(
    "what", "layers", ["layers", "profile"], "Our layers against peers, or the cost of flow.gradient_profile."
)
_MEMORY = flags.DEFINE_bool("memory", False, "Measure peak memory instead of time.")
_CELLS = flags.DEFINE_string("cells", "elman,gru,lstm", "Comma-separated: elman, gru, lstm.")
_GRID = flags.DEFINE_string("grid", None, "Comma-separated points BxTxIxH; a wide choice by default.")
_LAYERS = flags.DEFINE_integer("layers", 1, "Recurrent layers, one above the other.", lower_bound=1, upper_bound=100)
_BIDIRECTIONAL = flags.DEFINE_bool("bidirectional", False, "Run every layer in both directions.")
_PASSES = flags.DEFINE_string(
    "passes", None, "Comma-separated: forward, gradient, step. By default all; if quick, memory or profile: gradient."
)
_PEERS = flags.DEFINE_string("peers", None, "Comma-separated libraries; every one that is installed by default.")
_QUICK = flags.DEFINE_bool("quick", False, "Two grid points, the gradient alone, few rounds.")
_REPEATS = flags.DEFINE_integer("repeats", None, "Rounds of each measurement: 15, or 5 if quick.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "JAX devices to try spreading batches over; 1: none. By default all, on a CPU one for each core.",
    lower_bound=1,
    upper_bound=1024,
)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/benchmark-<time> by default.")

GRID = (
    "32x128x64x64",  # the size of a first experiment
    "64x48x32x32",  # small and short
    "32x784x1x128",  # digits pixel by pixel
    "20x35x200x200",  # a small language model
    "32x128x128x256",
    "32x50x300x512",  # sentences on word vectors
    "128x128x128x256",  # a large batch
    "256x32x64x64",  # a larger one, of short sequences
    "16x1024x64x128",  # long sequences
    "8x256x64x32",  # a small batch: the loop itself
    "1x512x64x128",  # one sequence
)
QUICK_GRID = ("32x64x32x64", "8x128x64x32")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX tells which devices it looked for
    jax.config.update("jax_num_cpu_devices", _DEVICES.value or os.cpu_count() or 1)
    jax.config.update("jax_default_matmul_precision", "float32")
    plan = make_plan()
    given = running.given_flags(__name__)
    run_dir = run_directory.create(
        _OUT.value,
        {**given, "peers": plan.libraries, "passes": plan.passes},
        experiment="benchmark",
        question=__doc__.splitlines()[0],
    )
    for line in plan.absent:
        print(line)

    machine: dict[str, Any] = {"cpu_count": os.cpu_count()}
    if "torch" in plan.libraries:
        machine["torch_threads"] = choose_wait_policy(compare=not _QUICK.value and not _MEMORY.value)
    machine["product_gflop_per_s"] = 1e-9 * (rate := product_rate())
    with run_directory.replacing(run_dir / "machine.json") as temporary:
        temporary.write_text(json.dumps(machine, indent=2) + "\n", encoding="utf-8")
    print_machine(machine)
    spinning = machine.get("torch_threads", {}).get("policy", "").lower() != "passive"
    pauses = {"torch": 0.02} if spinning else {}

    measurements: list[Measurement] = []
    refusals: list[str] = []
    rounds = 1 if _MEMORY.value else plan.rounds
    bar = tqdm.tqdm(total=len(plan.workloads) * len(plan.passes) * rounds, unit="round", disable=None)
    try:
        with bar:
            for w in plan.workloads:
                bar.set_description(f"{w.cell} {w.point}")
                if _MEMORY.value:
                    new, refused = memory_workload(w, plan.libraries, plan.passes, bar)
                else:
                    new, refused = time_workload(
                        w,
                        plan.libraries,
                        plan.passes,
                        rounds,
                        devices=plan.devices,
                        product_rate=rate,
                        pauses=pauses,
                        bar=bar,
                    )
                measurements += new
                refusals += refused
                if measurements:
                    save(run_dir, measurements)
    except KeyboardInterrupt:
        print(f"Interrupted; what was measured before is in {run_dir}.", file=sys.stderr)
        sys.exit(130)
    if not measurements:
        refuse(refusals)
    print_tables(measurements, plan.libraries, memory=_MEMORY.value)
    if _WHAT.value == "profile" and not _MEMORY.value:
        print_goal(measurements)
    print(f"\nThe run directory is {run_dir}. Look at:")
    *figures, report = write_report(run_dir)
    for path in (report, *figures, run_dir / "benchmark.csv", run_dir / "machine.json"):
        print(f"  {path}")
    if refusals:
        refuse(refusals)


def refuse(sentences: list[str]) -> NoReturn:
    """Says why measurements are missing, a line each."""
    for sentence in sentences:
        running.say(sentence)
    sys.exit(1)


def print_machine(machine: dict[str, Any]) -> None:
    rate = f"{machine['product_gflop_per_s']:.0f} GFLOP/s"
    print(f"{machine['cpu_count']} CPU cores; product of 2048 x 2048 matrices in float32: {rate}.")
    threads = machine.get("torch_threads", {})
    if threads.get("ms"):
        compared = ", ".join(f"{ms:.1f} ms with {name}" for name, ms in threads["ms"].items())
        print(f"OMP_WAIT_POLICY, torch's three layers alone: {compared}. This run has {threads['policy']}.")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the flags ask for."""

    workloads: list[Workload]
    libraries: list[str]
    passes: list[str]
    rounds: int
    devices: int
    absent: list[str]  # a line for each peer that is not there


def make_plan() -> Plan:
    """Reads the flags; raises ValueError with a sentence for what they cannot mean."""
    cells = parse_list("cells", _CELLS.value, CELL_GATES)
    grid = parse_grid(",".join(QUICK_GRID if _QUICK.value else GRID) if _GRID.value is None else _GRID.value)
    profile = _WHAT.value == "profile"
    only_gradient = profile or _MEMORY.value or _QUICK.value
    passes = ["gradient"] if only_gradient else list(PASSES)
    if _PASSES.value is not None:
        passes = parse_list("passes", _PASSES.value, PASSES[1:] if profile else PASSES)
        passes.sort(key=PASSES.index)  # weights change in `step` alone, which must be the last
    if profile and _PEERS.value is not None:
        raise ValueError(f"peers={_PEERS.value!r} has no meaning with what='profile', where ours runs alone.")
    if _MEMORY.value and jax.default_backend() != "cpu":
        raise ValueError(
            f"memory is measured on the CPU only; JAX runs on {jax.default_backend()}: set JAX_PLATFORMS=cpu."
        )
    libraries, absent = ([PROFILE], []) if profile else find_peers(_PEERS.value)
    layers, bidirectional = _LAYERS.value, _BIDIRECTIONAL.value
    workloads = []
    for cell in cells:
        of_cell = [Workload(cell, *point, layers=layers, bidirectional=bidirectional) for point in grid]
        if _GRID.value is None and not _QUICK.value and layers == 1 and not bidirectional:
            of_cell += [dataclasses.replace(of_cell[0], layers=2), dataclasses.replace(of_cell[0], bidirectional=True)]
        workloads += of_cell
    for w in workloads:
        check_memory(w.memory(), host_memory(), grid=f"'{w.point}'")
    rounds = _REPEATS.value or (5 if _QUICK.value else 15)
    devices = 1 if profile or _MEMORY.value else rnn_jax.batch_mesh(_DEVICES.value).size
    return Plan(workloads, libraries, passes, rounds, devices, absent)


def parse_list(flag: str, text: str, allowed: Iterable[str]) -> list[str]:
    """Splits a comma-separated flag; raises ValueError for a name that is unknown or stands there twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in allowed:
            raise ValueError(f"{flag}={text!r}: {name!r} is unknown; allowed: {', '.join(allowed)}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{flag}={text!r} names {'one twice' if names else 'none'}; allowed: {', '.join(allowed)}.")
    return names


def parse_grid(text: str) -> list[tuple[int, int, int, int]]:
    """Reads points BxTxIxH; raises ValueError for any that are none."""
    points = []
    for part in text.split(","):
        sizes = part.strip().split("x")
        if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise ValueError(
                f"grid={text!r}: {part.strip()!r} is no point; allowed: BxTxIxH (batch, time, input and hidden "
                "features), each 1 or more, as in 32x128x64x64."
            )
        batch, time, in_features, hidden = map(int, sizes)
        points.append((batch, time, in_features, hidden))
    return list(dict.fromkeys(points))


def find_peers(text: str | None) -> tuple[list[str], list[str]]:
    """Returns the peers to compare with, and a line for each that is left out as it is not there.

    Raises:
      ValueError: if one was asked for by name and is not there, or is unknown.
    """
    asked = list(LIBRARIES) if text is None else parse_list("peers", text, LIBRARIES)
    found, lines = [], []
    for name in asked:
        library = LIBRARIES[name]
        missing = importlib.util.find_spec(library.module) is None
        line = f"{name} is not installed and left out; to have it: pip install {library.pip}"
        if missing and text is not None:
            raise ValueError(f"peers={text!r}: {name} is not installed; to have it: pip install {library.pip}.")
        if name == "torch" and not missing and jax.default_backend() != "cpu" and not torch_has_gpu():
            missing, line = True, f"torch is left out: JAX runs on {jax.default_backend()}, this torch on the CPU only"
        if missing:
            lines.append(line)
        else:
            found.append(name)
    return found, lines


def torch_has_gpu() -> bool:
    import torch

    return jax.default_backend() == "gpu" and torch.cuda.is_available()


if __name__ == "__main__":
    running.run(main)
