"""How accurate is the log probability of a rounded value? Independent normal columns, rounded to half a standard deviation.

    python benchmarks/cells.py    # a few seconds

Writes the table of docs/columns.md.
"""

from pathlib import Path

import numpy as np
import numpyro.distributions as dist
from scipy.stats import norm
from tables import environment, markdown, provenance, replace_block

import flowdensity as fd

PAGE = Path(__file__).parents[1] / "docs" / "columns.md"
DIMENSIONS, POINTS, UNIT, ROWS = (1, 2, 4, 10, 64), (1, 16, 64, 256), 0.5, 200


def rmse(dim: int, points: int) -> float:
    """Root mean square error of the log probability over rows, in nats."""
    rows = np.random.default_rng(0).normal(size=(ROWS, dim))
    truth = np.log(norm.cdf(rows + UNIT / 2) - norm.cdf(rows - UNIT / 2)).sum(1)
    base = dist.Normal(np.zeros(dim, np.float32), 1.0).to_event(1)
    return float(np.sqrt(np.mean(np.square(fd.Rounded(base, UNIT, points=points).log_prob(rows) - truth))))


def main() -> None:
    """Compute all errors and write the table."""
    rows = [[str(dim), *(f"{rmse(dim, points):.2g}" for points in POINTS)] for dim in DIMENSIONS]
    table = markdown(["dimensions", *(f"{points} points" if points > 1 else "1 point" for points in POINTS)], rows)
    print(table)
    made = provenance("python benchmarks/cells.py", [{"made with": environment()}])
    replace_block(PAGE, "cells", f"{table}\n\n{made}")


if __name__ == "__main__":
    main()
