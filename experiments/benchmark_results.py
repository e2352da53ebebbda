"""What the benchmark measured: a row for each contestant, benchmark.csv, and the tables that it prints."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.benchmark_contestants import OURS, PROFILE
from experiments.benchmark_peers import Workload
from rnn_jax.training import run_directory

PROFILE_GOAL = 1.05  # gradient_profile / plain gradient, at batch 8 or more


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One contestant in one pass of one workload: a row of benchmark.csv.

    Attributes:
      workload, what, library, implementation, version: who and where.
      rounds, calls: turns, and calls in each.
      ms, ms_q25, ms_q75: a call, in milliseconds: median and quartiles over rounds.
      ratio, ratio_q25, ratio_q75: to ours, above 1 where ours is faster (or needs less memory).
      chosen: whether it is the library's fastest implementation here, which tables and figure show.
      compile_s: the first call less the median; None for torch.
      product_share: of the machine's own float32 rate in a product of 2048 x 2048 matrices.
      error: the largest relative difference to our outputs and kernel gradients.
      peak_mb, added_mb, program_mb: as `benchmark_memory.memory_of` has them.
    """

    workload: Workload
    what: str
    library: str
    implementation: str
    version: str
    rounds: int | None = None
    calls: int | None = None
    ms: float | None = None
    ms_q25: float | None = None
    ms_q75: float | None = None
    ratio: float = math.nan
    ratio_q25: float | None = None
    ratio_q75: float | None = None
    chosen: bool = True
    compile_s: float | None = None
    product_share: float | None = None
    error: float | None = None
    peak_mb: float | None = None
    added_mb: float | None = None
    program_mb: float | None = None

    def as_row(self) -> dict[str, object]:
        fields = dataclasses.asdict(self)
        what = {"pass": fields.pop("what"), "point": self.workload.point}
        return {**fields.pop("workload"), **what, **fields}


def with_choice(measurements: list[Measurement], cost: Callable[[Measurement], float]) -> list[Measurement]:
    """Marks the cheapest implementation of each library."""
    cheapest = {m.library: m for m in sorted(measurements, key=cost, reverse=True)}
    return [dataclasses.replace(m, chosen=m is cheapest[m.library]) for m in measurements]


def save(run_dir: pathlib.Path, measurements: Sequence[Measurement]) -> None:
    """Writes benchmark.csv, over an earlier one of this run."""
    run_directory.save_table(run_dir, [m.as_row() for m in measurements], "benchmark.csv")


def print_tables(measurements: Sequence[Measurement], libraries: Sequence[str], *, memory: bool) -> None:
    """Prints a table for each cell and pass, then compile times and geometric means of the ratios."""
    unit = "MB added during the calls" if memory else "ms a call, median over rounds (ours: ± half the quartile range)"
    meaning = "ours needs less" if memory else "ours is faster"
    print(f"\n{unit}; in brackets the ratio to ours: above 1, {meaning}.")
    if not memory:
        print("Last column: the share of the machine's matrix-product rate that ours reaches.")
    groups = list(dict.fromkeys((m.workload.cell, m.what) for m in measurements))
    width = max(len(m.workload.point) for m in measurements)
    for cell, what in groups:
        rows = [m for m in measurements if (m.workload.cell, m.what) == (cell, what) and m.chosen]
        title = f"{cell}, {what}"
        print(f"\n{title:{width}} {OURS:>16}" + "".join(f"{name:>18}" for name in libraries))
        for point in dict.fromkeys(m.workload.point for m in rows):
            by_library = {m.library: m for m in rows if m.workload.point == point}
            print(f"{point:{width}} " + _table_row(by_library, libraries, memory))
    if not memory:
        print_compile_times(measurements, libraries)
    print_means(measurements, libraries, groups)


def _table_row(by_library: dict[str, Measurement], libraries: Sequence[str], memory: bool) -> str:
    ours = by_library.get(OURS)
    if ours is None:
        return f"{'-':>16}"
    cells = [f"{ours.added_mb:.1f}" if memory else f"{ours.ms:.2f} ±{_half_range(ours):.2f}"]
    for name in libraries:
        m = by_library.get(name)
        cells.append("-" if m is None else f"{m.added_mb if memory else m.ms:.2f} ({m.ratio:.2f})")
    share = "" if memory else f"{ours.product_share:8.0%}"
    return f"{cells[0]:>16}" + "".join(f"{text:>18}" for text in cells[1:]) + share


def _half_range(m: Measurement) -> float:
    return ((m.ms_q75 or 0.0) - (m.ms_q25 or 0.0)) / 2


def print_compile_times(measurements: Sequence[Measurement], libraries: Sequence[str]) -> None:
    parts = []
    for name in (OURS, *libraries):
        seconds = [m.compile_s for m in measurements if m.library == name and m.chosen and m.compile_s is not None]
        parts += [f"{name} {np.median(seconds):.2f}"] if seconds else []
    print(f"\nCompile time (first call less the median), in seconds, median over all rows: {', '.join(parts)}.")


def print_means(
    measurements: Sequence[Measurement], libraries: Sequence[str], groups: Sequence[tuple[str, str]]
) -> None:
    """Prints geometric means of the ratios: by cell and pass, by pass, and of all."""
    best = "best JAX peer"
    columns = [*libraries, *([best] if len(set(libraries) - {"torch"}) > 1 else [])]
    print("\nGeometric means of the ratios over the grid" + (f" ({best}: at each point)" if best in columns else ""))
    print(" " * 18 + "".join(f"{name:>15}" for name in columns))
    passes = list(dict.fromkeys(what for _, what in groups))
    selections = {f"{cell} {what}": [(cell, what)] for cell, what in groups}
    if len(groups) > 1:
        if len(passes) > 1:
            selections |= {f"all {what}": [group for group in groups if group[1] == what] for what in passes}
        selections["all"] = list(groups)
    for title, selected in selections.items():
        rows = [m for m in measurements if m.chosen and (m.workload.cell, m.what) in selected]
        texts = []
        for name in columns:
            ratios = best_jax_ratios(rows) if name == best else [m.ratio for m in rows if m.library == name]
            texts.append(f"{np.exp(np.mean(np.log(ratios))):.2f}" if ratios else "-")
        print(f"{title:18}" + "".join(f"{text:>15}" for text in texts))


def best_jax_ratios(measurements: Sequence[Measurement]) -> list[float]:
    """Returns the lowest ratio that a JAX library reaches, for each workload and pass."""
    lowest: dict[tuple[Workload, str], float] = {}
    for m in measurements:
        if m.library not in (OURS, PROFILE, "torch"):
            key = (m.workload, m.what)
            lowest[key] = min(m.ratio, lowest.get(key, math.inf))
    return list(lowest.values())


def print_goal(measurements: Sequence[Measurement]) -> None:
    """Prints whether the profile costs as little as we want it to."""
    rows = [m for m in measurements if m.library == PROFILE and m.workload.batch >= 8]
    if rows:
        kept = sum(m.ratio <= PROFILE_GOAL for m in rows)
        worst = max(rows, key=lambda m: m.ratio)
        print(
            f"\nGoal: profile / plain gradient at most {PROFILE_GOAL} at batch 8 or more. Kept in {kept} of "
            f"{len(rows)} rows; the worst is {worst.ratio:.3f}, {worst.workload.cell} at {worst.workload.point}."
        )
