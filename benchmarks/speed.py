"""How long does `log_prob` take with the learned, the exact and Hutchinson's divergence, and with the network passes alone?

    python benchmarks/speed.py           # about a quarter of an hour on two cores
    python benchmarks/speed.py --quick   # eight dimensions only; a few minutes

Times the value and gradient of log_prob. Networks have the default size and random weights, because the time does not depend on
the weights. All divergences take turns in one process, with the same steps. Writes docs/speed.md.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tables import cells_of, markdown, provenance, wrapped
from turns import in_turn

import flowdensity as fd

DIMENSIONS, BATCHES, ROUNDS = (2, 8, 16, 32), (1, 4, 100, 1000), 7
MAX_EXACT = 4000
"""Largest product of dimension and number of points at which the exact divergence is timed."""


def density(dim: int) -> fd.FlowDensity:
    """A flow of the default size with a divergence head, both with nonzero weights."""
    data = np.random.default_rng(0).normal(size=(4000, dim))
    fitted, _ = fd.fit_flow(
        jr.key(0),
        data,
        network=fd.networks.ResidualMLP(jr.key(1), dim),
        divergence=fd.ExactDivergence(),
        training=fd.Training(steps=1),
        progress=False,
    )
    weights = 0.05 * jr.normal(jr.key(2), fitted.model.network.outward.weight.shape)
    model = eqx.tree_at(lambda m: m.network.outward.weight, fitted.model, weights)
    learned, _ = fd.fit_divergence(jr.key(3), model, data, training=fd.Training(steps=1), progress=False)
    return fd.FlowDensity(model, divergence=learned)


def value_and_gradient(density: fd.FlowDensity, points: jax.Array) -> Callable[[], object]:
    """A compiled call that returns the sum of log_prob over points and its gradient."""
    compiled = jax.jit(jax.value_and_grad(lambda d, x: jnp.sum(d.log_prob(x)), argnums=1))
    return lambda: compiled(density, points)


def passes(density: fd.FlowDensity, points: jax.Array) -> Callable[[], object]:
    """Value and gradient of a scan over the passes of network and head that the solver makes, without the solver."""
    model, divergence = density.model, density.divergence
    solver = density.solver
    assert isinstance(solver, fd.FixedStep)
    angles = jnp.linspace(0.0, 0.5 * jnp.pi, 3 * solver.steps + 1)

    def one(point: jax.Array) -> jax.Array:
        def evaluate(carry: tuple[jax.Array, jax.Array], angle: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            state, total = carry
            velocity, change = divergence(model, angle, state, jnp.zeros(0))
            return (state + 0.01 * velocity, total + change), None

        (_, total), _ = jax.lax.scan(evaluate, (point, jnp.zeros(())), angles)
        return total

    every = one if points.ndim == 1 else lambda x: jnp.sum(jax.vmap(one)(x))
    compiled = jax.jit(jax.value_and_grad(every))
    return lambda: compiled(points)


def measure(dim: int) -> dict:
    """Time the divergences and the passes alone in turn: one row of the table for each number of points."""
    rows = []
    learned = density(dim)
    rivals = {
        "stein": learned,
        "hutchinson": learned.with_divergence(fd.HutchinsonDivergence(jr.key(0))),
        "exact": learned.with_divergence(fd.ExactDivergence()),
    }
    for batch in BATCHES:
        points = jr.normal(jr.key(4), (batch, dim) if batch > 1 else (dim,))
        calls = {
            name: value_and_gradient(rival, points)
            for name, rival in rivals.items()
            if name != "exact" or batch * dim <= MAX_EXACT
        } | {"floor": passes(learned, points)}
        times = in_turn(calls, ROUNDS, repeats=max(1, 20 // batch))
        rows.append({"points": batch} | {name: 1e3 * each for name, each in times.items()})
        print(dim, rows[-1], flush=True)
    return {"rows": rows}


def main() -> None:
    """Measure the missing cells and write the page."""
    jobs = {str(dim): functools.partial(measure, dim) for dim in DIMENSIONS}
    cells = cells_of(__doc__, "speed", jobs, quick=("8",))
    table = markdown(
        ["D, points", "learned, ms", "exact / learned", "Hutchinson / learned", "learned / passes alone"],
        [
            [
                f"{dim}, {row['points']}",
                f"{row['stein']:.2f}",
                f"{row['exact'] / row['stein']:.1f}" if "exact" in row else "",
                f"{row['hutchinson'] / row['stein']:.1f}",
                f"{row['stein'] / row['floor']:.2f}",
            ]
            for dim, cell in cells.items()
            for row in cell["rows"]
        ],
    )
    parts = [
        "# How fast is `log_prob`?",
        wrapped(
            "This page shows how long `log_prob` and its gradient take with the learned divergence, compared with the exact "
            "divergence and with Hutchinson's estimator."
        ),
        wrapped(
            "Times are for the value and gradient of `log_prob` with 16 solver steps. Each time is the median of seven rounds in "
            "which the divergences take turns. Milliseconds depend on the machine, so the other columns are ratios of medians. "
            "The last column compares with the same number of passes of network and head in a plain scan, without a solver. This "
            "ratio can be below one, because each program is compiled in its own way. "
            "See also [What does a leapfrog step cost?](nuts.md)."
        ),
        table,
        provenance("python benchmarks/speed.py", cells.values()),
    ]
    Path("docs/speed.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
