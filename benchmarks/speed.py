"""What does the learned divergence cost beside the exact one and Hutchinson's? Value and gradient of log_prob.

    python benchmarks/speed.py

Networks of the default size with random weights, since time does not depend on what was learned; the three estimators in
turn, in one process, with the same steps. Writes docs/speed.md.
"""

import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tables import cell, markdown, provenance

import flowdensity as fd

DIMENSIONS, BATCHES, ROUNDS = (2, 8, 32), (1, 100), 7


def density(dim: int) -> fd.FlowDensity:
    """A flow of the default size with a divergence head, both with weights that are not zero."""
    data = np.random.default_rng(0).normal(size=(4000, dim))
    fitted, _ = fd.fit_flow(
        jr.key(0),
        data,
        network=fd.ResidualMLP(jr.key(1), dim),
        divergence=fd.ExactDivergence(),
        steps=1,
        progress=False,
    )
    weights = 0.05 * jr.normal(jr.key(2), fitted.model.network.outward.weight.shape)
    model = eqx.tree_at(lambda m: m.network.outward.weight, fitted.model, weights)
    learned, _ = fd.fit_divergence(jr.key(3), model, data, steps=1, progress=False)
    return fd.FlowDensity(model, divergence=learned)


def value_and_gradient(density: fd.FlowDensity, points: jax.Array) -> Callable[[], object]:
    """A compiled call that returns the sum of log_prob and its gradient in every point."""
    compiled = jax.jit(jax.value_and_grad(lambda d, x: jnp.sum(d.log_prob(x)), argnums=1))
    return lambda: jax.block_until_ready(compiled(density, points))


def measure() -> dict:
    """Times of the three estimators in turn: a row of the table for each dimension and number of points."""
    rows = []
    for dim in DIMENSIONS:
        learned = density(dim)
        rivals = {
            "stein": learned,
            "exact": learned.with_divergence(fd.ExactDivergence()),
            "hutchinson": learned.with_divergence(fd.HutchinsonDivergence(jr.key(0))),
        }
        for batch in BATCHES:
            points = jr.normal(jr.key(4), (batch, dim) if batch > 1 else (dim,))
            calls = {name: value_and_gradient(rival, points) for name, rival in rivals.items()}
            for call in calls.values():
                call()
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    repeats = 20 if batch == 1 else 1
                    started = time.perf_counter()
                    for _ in range(repeats):
                        call()
                    times[name].append((time.perf_counter() - started) / repeats)
            rows.append(
                {"dim": dim, "points": batch} | {name: 1e3 * float(np.median(each)) for name, each in times.items()}
            )
            print(rows[-1], flush=True)
    return {"rows": rows}


def main() -> None:
    """Measure, if that has not been done, and write the page."""
    result = cell("speed", measure)
    table = markdown(
        ["D", "points", "learned, ms", "exact / learned", "Hutchinson / learned"],
        [
            [
                str(row["dim"]),
                str(row["points"]),
                f"{row['stein']:.2f}",
                f"{row['exact'] / row['stein']:.1f}",
                f"{row['hutchinson'] / row['stein']:.1f}",
            ]
            for row in result["rows"]
        ],
    )
    text = (
        "# Speed\n\nValue and gradient of `log_prob`, 16 steps: median of seven rounds in which the estimators take turns. "
        "The columns to the right are ratios of medians; milliseconds depend on the machine.\n\n"
        f"{table}\n\n{provenance('python benchmarks/speed.py', [result])}\n"
    )
    Path("docs/speed.md").write_text(text)


if __name__ == "__main__":
    main()
