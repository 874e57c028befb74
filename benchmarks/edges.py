"""Are log densities and gradients finite at the edges of supports? At rows, draws and NUTS states.

    python benchmarks/edges.py    # some minutes on two cores

Writes the tables of docs/columns.md. "Before" is the same density with numpyro's bijections, which can map to the edge of a
support.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
from numpyro.distributions import biject_to, constraints
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import initialize_model
from tables import cells_of, environment, markdown, provenance, replace_block

import flowdensity as fd
from flowdensity.data.transforms import support as support_transform

PAGE = Path(__file__).parents[1] / "docs" / "columns.md"
ROWS, DRAWS, CHAINS, STATES, WARMUP, STEPS, WIDTH, REPEATS = 4_000, 10_000, 100, 100, 100, 300, 32, 20
DEPTH = 5
"""Maximum tree depth of NUTS. It is small, because this benchmark counts finite gradients and not effective draws."""


LABELS = {
    "unit interval": "Beta(0.2, 0.2) on `unit_interval`",
    "interval": "100 + Beta(0.2, 0.2) on `interval(100, 101)`",
    "greater than": "100 + Gamma(0.2) on `greater_than(100)`",
    "less than": "100 - Gamma(0.2) on `less_than(100)`",
    "positive": "Gamma(0.02) on `positive`",
    "simplex": "Dirichlet(0.1) on `simplex`",
    "ordered vector": "values near 1000 with gaps near 1e-4 on `ordered_vector`",
    "corr cholesky": "correlations near -1 and 1 on `corr_cholesky`",
}


def inside(low: float, values: np.ndarray, high: float) -> np.ndarray:
    """Move rows strictly inside an interval, in float64."""
    return np.clip(values, np.nextafter(low, high), np.nextafter(high, low))


def tables() -> dict[str, tuple[np.ndarray, Any]]:
    """Rows and support of each table."""
    rng = np.random.default_rng(0)
    beta, gamma = rng.beta(0.2, 0.2, ROWS), rng.gamma(0.2, size=ROWS)
    # Correlations of three coordinates. Most are close to 1 or -1.
    near = np.asarray(biject_to(constraints.corr_cholesky)(3.0 * rng.normal(size=(ROWS, 3))), np.float64)
    near = near / np.linalg.norm(near, axis=-1, keepdims=True)
    return {
        "unit interval": (inside(0.0, beta, 1.0), constraints.unit_interval),
        "interval": (inside(100.0, 100.0 + beta, 101.0), constraints.interval(100.0, 101.0)),
        "greater than": (inside(100.0, 100.0 + gamma, 1e9), constraints.greater_than(100.0)),
        "less than": (inside(-1e9, 100.0 - gamma, 100.0), constraints.less_than(100.0)),
        "positive": (np.maximum(rng.gamma(0.02, size=ROWS), 1e-300), constraints.positive),
        "simplex": (np.maximum(rng.dirichlet([0.1] * 3, ROWS), 1e-300), constraints.simplex),
        "ordered vector": (
            1000.0 + np.cumsum(rng.gamma(0.5, 1e-4, size=(ROWS, 3)) + 1e-12, axis=1),
            constraints.ordered_vector,
        ),
        "corr cholesky": (near, constraints.corr_cholesky),
    }


@contextmanager
def numpyros_own() -> Iterator[None]:
    """Use numpyro's unmodified bijections."""
    ours = support_transform.interior_bijection
    support_transform.interior_bijection = biject_to  # type: ignore[assignment]
    jax.clear_caches()
    try:
        yield
    finally:
        support_transform.interior_bijection = ours
        jax.clear_caches()


def finite(function: Callable[[Any], Any], points: Any) -> list[float]:
    """Shares of points with a finite value and with a finite gradient of a function."""
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(function)))(points)
    return [float(np.isfinite(each).reshape(len(points), -1).all(axis=1).mean()) for each in (values, slopes)]


def fitted(rows: np.ndarray, support: Any) -> fd.FlowDensity:
    """A short fit with its exact divergence."""
    dim = int(np.prod(biject_to(support).inverse_shape(rows.shape[1:])))
    network = fd.networks.ResidualMLP(jr.key(1), dim, width=WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        density, _ = fd.fit_flow(
            jr.key(0),
            rows,
            support=support,
            network=network,
            training=fd.Training(steps=STEPS),
            divergence=fd.ExactDivergence(),
            progress=False,
        )
    return density


def walk(density: fd.FlowDensity) -> tuple[Callable[[Any], Any], Any]:
    """The potential energy of one site, and the states of NUTS in unconstrained space."""
    info = initialize_model(jr.key(2), lambda: numpyro.sample("x", density), dynamic_args=False)

    def energy(state: Any) -> Any:
        return info.potential_fn({"x": state})

    shape = info.param_info.z["x"].shape
    mcmc = MCMC(
        NUTS(potential_fn=energy, max_tree_depth=DEPTH),
        num_warmup=WARMUP,
        num_samples=STATES,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(3), init_params=jr.uniform(jr.key(4), (CHAINS, *shape), minval=-2.0, maxval=2.0))
    return energy, mcmc.get_samples()


def shares(name: str) -> dict:
    """Finite shares of one table, before and after."""
    rows, support = tables()[name]
    density = fitted(rows, support)
    draws = density.sample(jr.key(5), (DRAWS,))
    energy, states = walk(density)
    inside = np.asarray(support(draws)).mean()

    def each() -> dict[str, list[float]]:
        return {
            "rows": finite(density.log_prob, jnp.asarray(rows, float)),
            "draws": finite(density.log_prob, draws),
            "states": finite(energy, states),
        }

    after = each()
    with numpyros_own():
        before = each()
        raw = np.asarray(support(density.sample(jr.key(5), (DRAWS,)))).mean()
    return {"after": after, "before": before, "inside": [float(raw), float(inside)]}


def cost(support: Any) -> dict:
    """Seconds for the log densities and gradients of 10,000 events, with numpyro's bijections and with ours."""
    rows = np.exp(np.random.default_rng(0).normal(size=(2_000, 2)))
    density = fitted(rows, support)
    events = density.sample(jr.key(0), (10_000,))

    def compiled() -> Callable[[], object]:
        function = jax.jit(jax.vmap(jax.value_and_grad(density.log_prob)))
        jax.block_until_ready(function(events))
        return lambda: jax.block_until_ready(function(events))

    with numpyros_own():
        before = compiled()
    both = {"before": before, "after": compiled()}
    # Alternate, because another process may use a core for a while.
    spent = [{name: timed(call) for name, call in both.items()} for _ in range(REPEATS)]
    return {name: min(each[name] for each in spent) for name in both}


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


JOBS = {name: (lambda name=name: shares(name)) for name in LABELS} | {
    "cost on real": lambda: cost(constraints.real),
    "cost on positive": lambda: cost(constraints.positive),
}


def main() -> None:
    """Compute the missing cells and write the table."""
    cells = cells_of(__doc__, "edges", JOBS)

    def percent(pair: list[float]) -> str:
        return " / ".join(f"{100.0 * share:.4g}" for share in pair)

    rows = [
        [
            LABELS[name],
            *(percent(cell[when][where]) for where in ("rows", "draws", "states") for when in ("before", "after")),
        ]
        for name, cell in cells.items()
        if "inside" in cell
    ]
    header = [
        "table",
        *(f"{where}, {when}" for where in ("rows", "draws", "NUTS states") for when in ("before", "after")),
    ]
    table = markdown(header, rows)
    print(table)
    ratios = ", ".join(
        f"{cell['after'] / cell['before']:.2f} on `{name.removeprefix('cost on ')}`"
        for name, cell in cells.items()
        if "inside" not in cell
    )
    note = (
        f"Run time of a log density and its gradient in two dimensions, as a ratio of after to before: {ratios}."
        if ratios
        else ""
    )
    made = provenance("python benchmarks/edges.py", [{"made with": environment()}])
    replace_block(PAGE, "edges", "\n\n".join(filter(None, (table, note, made))))


if __name__ == "__main__":
    main()
