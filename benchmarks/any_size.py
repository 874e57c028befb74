"""Two models whose posteriors one network learns for data sets of many sizes: independent rows, and a time series."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS

import flowdensity as fd
from flowdensity.diagnostics.ranks import ranks_of

SIMULATIONS, DATA_SETS, DRAWS = 10_000, 20, 1_000
"""Number of simulations that a posterior is learned from, of data sets that it is refined for, and of draws for each."""
CHECKED, RANKED = 500, 200
"""Number of data sets of a check of one size, and of draws that each true value is ranked among."""
COMPILED = "/jax/core/compile/backend_compile_duration"
"""Name of the event with which JAX reports a compilation."""


def rows(y: Any = None, size: int = 100) -> None:
    """Independent rows from a Student t distribution with unknown mean and scale."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("rows", size):
        numpyro.sample("y", dist.StudentT(4.0, mu, sigma), obs=y)


def series(y: Any = None, size: int = 200) -> None:
    """A stationary autoregression of second order from zero, with unknown partial autocorrelations and innovations."""
    first = numpyro.sample("first", dist.Uniform(-1.0, 1.0))
    second = numpyro.sample("second", dist.Uniform(-1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))

    def step(
        last: tuple[jax.Array, jax.Array], value: jax.Array | None
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        mean = first * (1.0 - second) * last[1] + second * last[0]
        now: Any = numpyro.sample("y", dist.Normal(mean, sigma), obs=value)
        return (last[1], now), now

    scan(step, (jnp.zeros(()), jnp.zeros(())), y, length=size)


class Problem(NamedTuple):
    """A model, its encoder, and the sizes of data sets: the smallest and the largest are those of the training."""

    model: Callable[..., None]
    encoder: fd.encoders.AbstractEncoder
    sizes: tuple[int, int, int]


PROBLEMS: Mapping[str, Problem] = {
    "rows": Problem(rows, fd.encoders.DeepSet(jr.key(1), fewest=5), (5, 20, 100)),
    "series": Problem(series, fd.encoders.Sequence(jr.key(1), fewest=50), (50, 100, 200)),
}


def measure(name: str) -> dict:
    """Learn the posterior; check it at each size; refine it and sample it with NUTS for twenty data sets."""
    model, encoder, sizes = PROBLEMS[name]
    started = time.perf_counter()
    posterior, report = fd.fit_posterior(
        jr.key(0), model, observed="y", encoder=encoder, num_simulations=SIMULATIONS, progress=False
    )
    seconds = time.perf_counter() - started
    print(report.summary(), flush=True)
    simulated = posterior.joint.simulate(jr.key(2), CHECKED + DATA_SETS, progress=False)
    checks = {size: ranks_at(posterior, simulated, size) for size in sizes}
    for ranks in checks.values():
        print(ranks.summary(), flush=True)
    sampled = {size: sampler(partial(model, size=size)) for size in sizes}
    differences, refined = [], []
    for number in range(DATA_SETS):
        size = sizes[number % len(sizes)]
        y = simulated["y"][CHECKED + number, :size]
        found = posterior.refine(jr.key(number), {"y": y}, DRAWS, progress=False)
        refined.append(found)
        exact = sampled[size](y)
        means = {site: float(found.posterior["posterior"][site].mean()) for site in exact}
        differences.append(max(abs(means[s] - exact[s].mean()) / exact[s].std() for s in exact))
        print(name, size, found.conclusion, differences[-1], flush=True)
    return {
        "seconds": seconds,
        "smallest p-value": {str(size): smallest(ranks) for size, ranks in checks.items()},
        "threshold": checks[sizes[0]].threshold,
        "bad": {str(size): ranks.bad for size, ranks in checks.items()},
        "pareto_k": [each.pareto_k for each in refined],
        "threshold of k": refined[0].threshold,
        "methods": [each.method for each in refined],
        "differences": differences,
        **drawing(posterior, simulated["y"], sizes),
    }


def ranks_at(posterior: Any, simulated: dict[str, np.ndarray], size: int) -> fd.results.Ranks:
    """Ranks of the true values among draws, for data sets of one size."""
    truths = {name: simulated[name][:CHECKED] for name in posterior.joint.latents}
    density = posterior.given({"y": simulated["y"][:CHECKED, :size]})
    draws = density.unpack(density.sample(jr.key(3), (RANKED,)))
    return ranks_of(jr.key(4), {name: draws[name] for name in truths}, truths)


def smallest(ranks: fd.results.Ranks) -> float:
    """Smallest p-value of a check."""
    return float(min([ranks.coverage_p_value, *[np.min(p) for p in ranks.p_values.values()]]))


def sampler(model: Callable[..., None]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """NUTS for one size of data sets, which is compiled once."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=1_000,
        num_samples=2_000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )

    def sample(y: np.ndarray) -> dict[str, np.ndarray]:
        mcmc.run(jr.key(0), jnp.asarray(y))
        return {name: np.asarray(value, np.float64) for name, value in mcmc.get_samples().items() if name != "y"}

    return sample


def drawing(posterior: Any, data: np.ndarray, sizes: tuple[int, int, int]) -> dict[str, float]:
    """Median seconds of 1,000 draws for data sets of new sizes, and the number of compilations that they needed."""
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            compiled.append(duration_secs)

    posterior.draw(jr.key(0), {"y": data[0, : sizes[0]]}, DRAWS)
    jax.monitoring.register_event_duration_secs_listener(listen)
    seconds = []
    for number in range(1, 10):
        started = time.perf_counter()
        posterior.draw(jr.key(number), {"y": data[number, : sizes[0] + 4 * number]}, DRAWS)
        seconds.append(time.perf_counter() - started)
    jax.monitoring.unregister_event_duration_listener(listen)
    return {"seconds to draw": float(np.median(seconds)), "compilations": len(compiled)}
