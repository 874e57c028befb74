"""What do many rows cost in time and memory?

    python benchmarks/rows.py                     # 10,000 and 50,000 rows
    python benchmarks/rows.py 1000000 --steps 1   # a million, with one step of the solver, which takes the same memory

`log_prob` of a two-dimensional flow of the default size, untrained, since neither depends on what was learned. Each number of
rows has a process of its own, whose peak memory is compared with that after a compilation for few rows. Prints a line for each.
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.random as jr
import numpy as np

import flowdensity as fd
from flowdensity.training.prepare import prepare


def peak() -> float:
    """The largest memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int, steps: int) -> str:
    """Seconds of the second call, and growth of the memory by both calls."""
    table = np.random.default_rng(0).normal(size=(4000, 2))
    parts = prepare("fit_flow", jr.key(2), table, None, None, None, None)
    density = fd.FlowDensity(fd.models.GaussianFlow(path=fd.paths.CondOT(), **parts.shared), solver=fd.FixedStep(steps))
    jax.block_until_ready(density.log_prob(jr.normal(jr.key(0), (100, 2))))
    values, before = jr.normal(jr.key(1), (rows, 2)), peak()
    jax.block_until_ready(density.log_prob(values))
    started = time.perf_counter()
    jax.block_until_ready(density.log_prob(values))
    seconds = time.perf_counter() - started
    return f"{rows:,} rows, {steps} steps: {seconds:.2f} s, {1e6 * seconds / rows:.1f} us a row, {peak() - before:.0f} MB more"


def main() -> None:
    """Measure each number of rows in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--steps", type=int, default=16, help="of the solver")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    asked = parser.parse_args()
    for rows in asked.rows:
        if asked.here:
            print(measure(rows, asked.steps), flush=True)
        else:
            subprocess.run([sys.executable, __file__, str(rows), "--steps", str(asked.steps), "--here"], check=True)


if __name__ == "__main__":
    main()
