"""What the defaults rest on: the same fit with one thing otherwise, by the log score of rows that it has not seen.

    python benchmarks/choices.py                     # all cells; resumes
    python benchmarks/choices.py --only 'wine-*'     # a part of them
    python benchmarks/choices.py --cached            # only the table, from the cells that are there

Writes docs/choices.md. Only the flow is fitted, and scored with the exact divergence: what is distilled follows it.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from columns import TABLES, split
from tables import cell, is_cached, markdown, provenance, replace_block

import flowdensity as fd
from flowdensity.models.networks import AbstractNetwork
from flowdensity.training.options import SMALL

PAGE = Path("docs/choices.md")
SCORED, CHUNK = 2_000, 500
SEEDS = (0, 1, 2)
TABLE_NAMES = (
    *("iris", "wine", "diabetes", "cancer-10", "cancer-30", "digits-16", "digits-64"),
    *("moons", "checkerboard", "funnel", "mixture-8", "mixture-32"),
)


def network(rows: int, dim: int, experts: int) -> AbstractNetwork:
    """The default network with another number of experts."""
    return fd.ResidualMLP(jr.key(7), dim, width=64 if rows < SMALL else 256, experts=experts)


CHOICES: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
    "default": lambda rows, dim: {},
    "no experts": lambda rows, dim: {"network": network(rows, dim, 0)},
    "16 experts": lambda rows, dim: {"network": network(rows, dim, 16)},
    "Trigonometric": lambda rows, dim: {"path": fd.Trigonometric()},
    "VariancePreserving": lambda rows, dim: {"path": fd.VariancePreserving()},
}
"""Options of `fit_flow` by name, for so many rows and columns."""


def measure(table: str, choice: str, seed: int) -> dict:
    """Fit the rows of one split, and score the others."""
    train, test = split(TABLES[table], seed)
    options = CHOICES[choice](*train.shape)
    started = time.perf_counter()
    density, report = fd.fit_flow(jr.key(seed), train, divergence=fd.ExactDivergence(), progress=False, **options)
    (history,) = report.histories.values()
    log_prob = eqx.filter_jit(lambda density, rows: density.log_prob(rows))

    def scores(rows: np.ndarray) -> np.ndarray:
        parts = [log_prob(density, jnp.asarray(rows[i : i + CHUNK], float)) for i in range(0, len(rows), CHUNK)]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    held_out = scores(test[:SCORED])
    return {
        "score": float(held_out.mean()),
        "training score": float(scores(train[:SCORED]).mean()),
        "best step": history.best_step,
        "seconds to fit": time.perf_counter() - started,
        "rows": [round(float(value), 4) for value in held_out],
    }


def table_of(cells: Mapping[tuple[str, str, int], dict]) -> str:
    """Scores of the default, and of everything else less that, over the splits that both have."""
    rows = []
    for table in TABLE_NAMES:
        seeds = [s for s in SEEDS if (table, "default", s) in cells]
        if not seeds:
            continue
        row = [table, f"{np.mean([cells[table, 'default', s]['score'] for s in seeds]):.3f}"]
        for choice in list(CHOICES)[1:]:
            pairs = [
                (cells[table, choice, s], cells[table, "default", s]) for s in seeds if (table, choice, s) in cells
            ]
            if not pairs:
                row.append("")
                continue
            gaps = [np.asarray(one["rows"]) - np.asarray(other["rows"]) for one, other in pairs]
            error = np.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps)) / len(gaps)
            row.append(f"{np.mean([gap.mean() for gap in gaps]):+.3f} +- {error:.3f}")
        rows.append(row)
    return markdown(["", *CHOICES], rows)


def main() -> None:
    """Compute the cells that are missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help="cells, as file patterns")
    parser.add_argument("--cached", action="store_true", help="compute nothing; write the table of the cells there are")
    args = parser.parse_args()
    cells = {}
    for seed in SEEDS:
        for table in TABLE_NAMES:
            for choice in CHOICES:
                name = f"{table}-{choice.replace(' ', '-')}-{seed}"
                wanted = not args.cached and any(fnmatch(name, pattern) for pattern in args.only)
                if wanted or is_cached(f"choices/{name}"):
                    found = cell(f"choices/{name}", lambda t=table, c=choice, s=seed: measure(t, c, s))
                    cells[table, choice, seed] = found
                    if wanted:
                        print(name, {key: value for key, value in found.items() if key != "rows"}, flush=True)
    if not cells:
        print("no cells yet")
        return
    count = len(SEEDS) * len(TABLE_NAMES) * len(CHOICES)
    partial = f"**Partial: {len(cells)} of {count} cells.**\n\n" if len(cells) < count else ""
    text = f"{partial}{table_of(cells)}\n\n{provenance('python benchmarks/choices.py', cells.values())}"
    print(text)
    replace_block(PAGE, "choices", text)


if __name__ == "__main__":
    main()
