"""Time of a gradient of `log_prob` with the exact divergence and with a learned one, in few dimensions.

    python benchmarks/exact.py

Writes the table in docs/which-divergence.md. Networks have the default size and random weights, because the time does not depend
on the weights. Both functions are compiled first and then timed alternately, for two states at once, as in two chains of NUTS.
"""

import time
from pathlib import Path
from statistics import median

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

DIMENSIONS = (1, 2, 3, 4, 6, 8)
REPEATS, CALLS = 9, 60
PAGE = Path("docs/which-divergence.md")


def measure(dim: int) -> dict:
    """Median milliseconds of a value and gradient with each divergence."""
    rows = np.random.default_rng(0).normal(size=(2000, dim))
    training = fd.Training(steps=1)
    options = {"training": training, "progress": False}
    density, _ = fd.fit_flow(jr.key(0), rows, divergence=fd.objectives.LangevinStein(), **options)
    weights = 0.05 * jr.normal(jr.key(1), density.model.network.outward.weight.shape)
    model = eqx.tree_at(lambda m: m.network.outward.weight, density.model, weights)
    events = jnp.asarray(rows[:2], float)
    calls = {}
    for name, divergence in (("exact", fd.ExactDivergence()), ("learned", density.divergence)):
        each = fd.FlowDensity(model, divergence=divergence, solver=fd.FixedStep(16))
        calls[name] = jax.jit(jax.vmap(jax.value_and_grad(each.log_prob)))
        jax.block_until_ready(calls[name](events))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                jax.block_until_ready(call(events))
            seconds[name].append((time.perf_counter() - started) / CALLS)
    return {name: 1e3 * median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure the missing cells and write the table."""
    cells = cells_of(__doc__, "exact", {str(dim): lambda dim=dim: measure(dim) for dim in DIMENSIONS})
    rows = [
        [name, f"{cell['exact']:.2f}", f"{cell['learned']:.2f}", f"{cell['exact'] / cell['learned']:.2f}"]
        for name, cell in cells.items()
    ]
    table = markdown(["D", "exact, ms", "learned, ms", "exact / learned"], rows)
    caption = "Times are medians for the value and gradient of `log_prob` at two states, with 16 solver steps."
    replace_block(PAGE, "exact", f"{table}\n\n{caption} {provenance('python benchmarks/exact.py', cells.values())}")


if __name__ == "__main__":
    main()
