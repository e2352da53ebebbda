"""How much memory contestants need: each pass of each runs in a process of its own, which tells its peak."""

import dataclasses
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import tqdm
from absl import logging

from experiments.benchmark_contestants import OURS, Key, build, contestants_of, version_of
from experiments.benchmark_peers import Workload, build_ours
from experiments.benchmark_results import Measurement, with_choice

ROOT = pathlib.Path(__file__).resolve().parents[1]
_REST = 0.1  # seconds between calls whose memory is measured
# glibc then gives freed memory back at once, so that memory held is memory in use.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def memory_workload(
    w: Workload, libraries: Sequence[str], passes: Sequence[str], bar: tqdm.tqdm
) -> tuple[list[Measurement], list[str]]:
    """Measures the peak memory of each contestant and pass, each in a process of its own."""
    measurements: list[Measurement] = []
    failures: list[str] = []
    for name in passes:
        rows: list[Measurement] = []
        for key in contestants_of(w, libraries):
            code = "import sys; from experiments import benchmark_memory; benchmark_memory.memory_worker(*sys.argv[1:])"
            command = [sys.executable, "-c", code, json.dumps(dataclasses.asdict(w)), *key, name]
            environment = {**os.environ, **_MALLOC}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                failures.append(f"{key[0]} ({key[1]}) on {w.cell} at {w.point} could not be measured: {reason}")
                continue
            rows.append(Measurement(w, name, *key, version_of(key[0]), **json.loads(done.stdout.splitlines()[-1])))
        own = next((m.added_mb for m in rows if m.library == OURS), None)
        rows = [dataclasses.replace(m, ratio=(m.added_mb or 0.0) / own if own else math.nan) for m in rows]
        measurements += with_choice(rows, lambda m: m.added_mb or 0.0)
        bar.update()
    return measurements, failures


def memory_worker(workload: str, library: str, implementation: str, pass_name: str) -> None:
    """Runs in a process of its own: prints the memory of one contestant in one pass, as JSON."""
    logging.set_verbosity(logging.WARNING)
    print(json.dumps(memory_of(Workload(**json.loads(workload)), (library, implementation), pass_name)))


def memory_of(w: Workload, key: Key, pass_name: str) -> dict[str, float | None]:
    """Runs a pass in this process, and returns its memory in MB.

    Returns:
      peak_mb: the most this process ever held, imports and (JAX) compilation with it; JAX is imported for torch too.
      added_mb: the most it held during three calls, less what it held before them, behind compilation and a call.
      program_mb: what the compiled program needs by XLA's own account: arguments, results and all that lies between.
    """
    contestant = build(w, key, build_ours(w))
    program = contestant.compile(pass_name)
    run = getattr(contestant, pass_name)
    run()  # torch prepares much in its first call
    time.sleep(_REST)  # what a call needs may be freed by another thread, after its end
    peak_before = peak_memory()
    held = current_memory() if reset_peak() else peak_before
    for _ in range(3):
        run()
        time.sleep(_REST)
    peak = peak_memory()
    megabytes = {"peak_mb": max(peak, peak_before), "added_mb": peak - held}
    return {name: value / 1e6 for name, value in megabytes.items()} | {"program_mb": program and program / 1e6}


def peak_memory() -> float:
    """Returns the most bytes this process ever held, or, on Linux, since `reset_peak`."""
    status = _process_status("VmHWM")  # ru_maxrss counts the process that started this one in
    if status is not None:
        return status
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def current_memory() -> float:
    return _process_status("VmRSS") or peak_memory()


def _process_status(field: str) -> float | None:
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def reset_peak() -> bool:
    """Starts the count of `peak_memory` again; False where the system does not let us."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
