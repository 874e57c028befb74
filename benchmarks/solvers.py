"""Which fixed-step method, and where should its steps be? Error of log_prob for a given number of evaluations of the velocity.

    python benchmarks/solvers.py            # about ten minutes on two cores, plus the fits; resumes
    python benchmarks/solvers.py --quick    # two and eight dimensions
    python benchmarks/solvers.py --cached   # write only the table

Evaluates flows with a learned divergence, fitted to the twisted chains of the accuracy benchmark, at fresh points. The reference
takes 256 steps of a third-order method. Writes the table of docs/solvers.md.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from fits import chain_flow
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

DIMENSIONS, POINTS, BUDGETS = (2, 8, 32), 256, (24, 48, 96)
METHODS = {
    "Heun, 2": (diffrax.Heun(), 2),
    "Bogacki-Shampine, 3": (diffrax.Bosh3(), 3),
    "Tsitouras, 5": (diffrax.Tsit5(), 6),
    "Dormand-Prince, 8": (diffrax.Dopri8(), 13),
}
"""Each method, named with its order, and its number of evaluations per step."""
GRIDS: dict[str, Callable[[int], jax.Array]] = {
    "path time": fd.paths.CondOT().grid,
    "angle": fd.paths.Trigonometric().grid,
    "root of the angle left": lambda steps: 0.5 * jnp.pi * (1.0 - jnp.square(jnp.linspace(1.0, 0.0, steps + 1))),
}
"""Angles at the ends of equal steps of a quantity. The last is the default."""


class OnGrid(fd.FixedStep):
    """Fixed steps on another grid than the model's own."""

    grid: Callable[[int], jax.Array] = eqx.field(static=True, kw_only=True)

    def integrate(self, field: Any, times: Any, start: Any, reverse: bool) -> Any:
        """Solve on the grid."""
        return super().integrate(field, self.grid, start, reverse)


def errors(dim: int) -> dict:
    """Root mean square error for each grid, method and number of evaluations."""
    law, density, _ = chain_flow(dim)
    points = law.sample(jr.key(2000), (POINTS,))

    def log_prob(solver: fd.FixedStep) -> np.ndarray:
        return np.asarray(density.with_solver(solver).log_prob(points), np.float64)

    reference = log_prob(fd.FixedStep(256))
    result: dict = {}
    for name, grid in GRIDS.items():
        for method, (scheme, cost) in METHODS.items():
            for budget in BUDGETS:
                gap = log_prob(OnGrid(budget // cost, scheme, grid=grid)) - reference
                result[f"{name} / {method} / {budget}"] = float(np.sqrt(np.mean(np.square(gap))))
                jax.clear_caches()
    return result


def main() -> None:
    """Compute the cells that are missing and write the table."""
    jobs = {str(dim): functools.partial(errors, dim) for dim in DIMENSIONS}
    cells = cells_of(__doc__, "solvers", jobs, quick=("2", "8"))
    rows = [
        [
            f"{grid}, {method}",
            *(f"{cell[f'{grid} / {method} / {budget}']:.2g}" for cell in cells.values() for budget in BUDGETS),
        ]
        for grid in GRIDS
        for method in METHODS
    ]
    header = ["equal steps in, method, order", *(f"D = {dim}, {budget}" for dim in cells for budget in BUDGETS)]
    text = f"{markdown(header, rows)}\n\n{provenance('python benchmarks/solvers.py', cells.values())}"
    replace_block(Path("docs/solvers.md"), "solvers", text)


if __name__ == "__main__":
    main()
