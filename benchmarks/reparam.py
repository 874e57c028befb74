"""When is it better to sample a learned prior in its noise? Weak, medium and strong data, with one mode and with six.

    python benchmarks/reparam.py            # about an hour on two cores; resumes
    python benchmarks/reparam.py --cached   # write only the table, from the cells computed so far

Writes the table of docs/in-a-model.md.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from chains import CHAINS, run_nuts
from mixtures import Mixture
from numpyro.handlers import reparam
from numpyro.infer.util import initialize_model
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

DIM = 4
NOISES = {"weak": 3.0, "medium": 0.5, "strong": 0.05}
"""Standard deviation of the noise on every coordinate, in units of that coordinate's standard deviation under the prior."""
WAYS = ("`FlowReparam`", "`log_prob`", "`log_prob`, distilled")
WARMUP, SAMPLES = 200, 250
ROUNDS = 20
"""Number of timings of a gradient."""
MIXED = 1.05
"""Largest R-hat at which an effective sample size is shown."""


def one_mode(count: int, seed: int) -> np.ndarray:
    """A curved ridge: each coordinate depends on the square of the one before."""
    rng = np.random.default_rng(seed)
    columns = [rng.normal(size=count)]
    for _ in range(DIM - 1):
        columns.append(0.4 * (np.square(columns[-1]) - 1.0) + 0.6 * rng.normal(size=count))
    return np.stack(columns, 1)


def six_modes(count: int, seed: int) -> np.ndarray:
    """The mixture of the accuracy tables."""
    return Mixture(DIM, 0).sample(count, seed)


PRIORS = {"one mode": one_mode, "six modes": six_modes}


def seconds_of_a_gradient(model: Callable[[], None]) -> float:
    """Median time of the gradient of all chains. The rest of a leapfrog step is short compared with solving an ODE."""
    found = initialize_model(jr.split(jr.key(0), CHAINS), model)
    gradient, states = jax.jit(jax.vmap(jax.value_and_grad(found.potential_fn))), found.param_info.z
    jax.block_until_ready(gradient(states))
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        jax.block_until_ready(gradient(states))
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def compare(prior: str) -> dict:
    """Effective draws per second and R-hat for each strength of the data and each way of sampling."""
    draw = PRIORS[prior]
    data = draw(20_000, 1000)
    density, _ = fd.fit_flow(jr.key(0), data)
    fast, _ = fd.distill(jr.key(2), density)
    truth, scale = draw(1, 7)[0], data.std(0)
    result: dict = {}
    for strength, noise in NOISES.items():
        observed = truth + noise * scale * np.random.default_rng(11).normal(size=DIM)

        def model(prior: dist.Distribution, observed: np.ndarray = observed, noise: float = noise) -> None:
            theta = numpyro.sample("theta", prior)
            numpyro.sample("y", dist.Normal(theta, noise * jnp.asarray(scale)).to_event(1), obs=jnp.asarray(observed))

        result[strength] = {}
        through_noise = reparam(partial(model, density), config={"theta": fd.FlowReparam()})
        for way, posterior in zip(WAYS, (through_noise, partial(model, density), partial(model, fast)), strict=True):
            _, run = run_nuts(posterior, warmup=WARMUP, samples=SAMPLES)
            result[strength][way] = run | {"seconds": run["gradients"] * seconds_of_a_gradient(posterior)}
            print(prior, strength, way, result[strength][way], flush=True)
    return result


def table(cells: dict[str, dict]) -> str:
    """The table as Markdown, with the cells that have been computed."""
    rows = []
    for prior, c in cells.items():
        for strength in NOISES:
            row = [f"{prior}, {strength} data"]
            for way in WAYS:
                run = c[strength][way]
                # An effective sample size has no meaning if the chains have not mixed.
                rate = run["ess"] / run["seconds"]
                row.append("-" if run["r_hat"] > MIXED else f"{rate:.1f}" if rate < 100.0 else f"{rate:,.0f}")
            row += [f"{c[strength][way]['r_hat']:.3f}" for way in WAYS]
            rows.append(row)
    header = ["", *(f"{way}: effective draws per second" for way in WAYS), *(f"{way}: R-hat" for way in WAYS)]
    return "\n\n".join([markdown(header, rows), provenance("python benchmarks/reparam.py", cells.values())])


def main() -> None:
    """Compute the cells that are missing and write the table."""
    cells = cells_of(__doc__, "reparam", {prior: lambda prior=prior: compare(prior) for prior in PRIORS})
    replace_block(Path("docs/in-a-model.md"), "reparam", table(cells))


if __name__ == "__main__":
    main()
