"""What does a learned prior cost in NUTS? Time per leapfrog step, leapfrog steps per effective draw, time to compile.

    taskset -c 0 python benchmarks/nuts.py   # about an hour and a half on one core; resumes
    python benchmarks/nuts.py --quick        # two dimensions only; under ten minutes on two cores
    python benchmarks/nuts.py --cached       # write only the page, from the cells computed so far

The prior is a mixture of six Gaussians learned from 20,000 rows; the likelihood leaves the posterior with one mode, so that
effective sample sizes are meaningful. All priors use the same step size, mass matrix and starting points, adapted under the
closed-form prior. Writes docs/nuts.md.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from fits import mixture_flow
from mixtures import Mixture, closed_form, in_view
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from nuts_page import GAPS, page, picture
from tables import cells_of
from turns import in_turn

import flowdensity as fd

PAGE = Path("docs/nuts.md")
NOISES, CHAINS = (0.4, 0.2, 0.1), 4
WARMUP, CHUNK, MOST, SECONDS = 500, 5, 5000, 30.0
"""Each prior makes draws in calls of five, until it has 5,000 per chain or half a minute has passed."""
DIMENSIONS = (2, 8, 16, 32)
LOOP, ROUNDS = 2000, 7
"""Number of values and gradients in a loop, and of rounds in which loops take turns."""
OBJECTS, OBJECT_DRAWS = 1000, 200


def observation(mixture: Mixture) -> tuple[np.ndarray, float, float]:
    """An observation that gives one component more than 99 % of the posterior, its noise, and the exact share."""
    error = np.random.default_rng(2).normal(size=mixture.dim)
    for noise in NOISES:
        for component, mean in enumerate(mixture.means):
            share = in_view(mixture, mean + noise * error, noise)[component]
            if share > 0.99:
                return mean + noise * error, noise, share
    raise ValueError("no observation of this mixture leaves one component in view")


def model_of(prior: dist.Distribution, observed: np.ndarray, noise: float) -> Callable[[], None]:
    """A model of the prior with a noisy observation of every coordinate."""

    def model() -> None:
        theta = numpyro.sample("theta", prior)
        numpyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=jnp.asarray(observed, float))

    return model


def adapted(model: Callable[[], None], start: np.ndarray) -> tuple[dict, jax.Array]:
    """Step size and mass matrix shared by all chains, and the final states of the chains."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=WARMUP,
        num_samples=10,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(3), init_params={"theta": jnp.asarray(np.tile(start, (CHAINS, 1)), float)})
    found = mcmc.last_state.adapt_state
    settings = {
        "step_size": float(np.median(found.step_size)),
        "inverse_mass_matrix": jnp.mean(next(iter(found.inverse_mass_matrix.values())), axis=0),
        "adapt_step_size": False,
        "adapt_mass_matrix": False,
    }
    return settings, mcmc.last_state.z["theta"]


def timed(model: Callable[[], None], settings: dict, starts: jax.Array) -> dict:
    """Time four vectorized chains, in calls of one compiled function, until the limit of draws or seconds."""
    kernel = NUTS(model, **settings)
    started = time.perf_counter()
    state = kernel.init(jr.split(jr.key(4), CHAINS), 0, {"theta": starts}, (), {})

    @jax.jit
    def advance(state: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        def step(state: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state = kernel.sample(state, (), {})
            return state, (state.z["theta"], state.num_steps)

        return jax.lax.scan(step, state, None, length=CHUNK)

    # The first call includes compilation.
    state, _ = jax.block_until_ready(advance(state))
    first = time.perf_counter() - started
    draws, leapfrogs, seconds = [], [], 0.0
    while seconds < SECONDS and len(draws) < MOST // CHUNK:
        started = time.perf_counter()
        state, (theta, steps) = jax.block_until_ready(advance(state))
        seconds += time.perf_counter() - started
        draws.append(np.asarray(theta, np.float64))
        leapfrogs.append(np.asarray(steps))
    chains, steps = np.concatenate(draws).swapaxes(0, 1), np.concatenate(leapfrogs)
    # A vectorized draw takes the steps of its longest chain, because the other chains wait for it.
    total = float(steps.max(1).sum())
    return {
        "compilation": first - seconds / len(draws),
        "draws": chains.shape[1],
        "per leapfrog": 1e3 * seconds / total,
        "leapfrogs": float(steps.mean()),
        "ess": effective(chains),
        "leapfrogs per ess": total / effective(chains),
        "mean": chains.mean((0, 1)).tolist(),
        "deviation": chains.std((0, 1)).tolist(),
    }


def effective(draws: np.ndarray) -> float:
    """Smallest effective sample size over coordinates."""
    return float(min(effective_sample_size(draws[..., i]) for i in range(draws.shape[-1])))


def posterior(dim: int) -> dict:
    """Compare all priors on one posterior."""
    mixture, learned, fit_seconds = mixture_flow(dim)
    fast, report = fd.distill(jr.key(1), learned)
    observed, noise, share = observation(mixture)
    exact = learned.with_divergence(fd.ExactDivergence())
    test = jnp.asarray(mixture.sample(2000, 7), float)
    reference = np.asarray(exact.log_prob(test), np.float64)
    log_probs = fast.log_prob(test), learned.log_prob(test), mixture.log_prob(np.asarray(test, np.float64))
    gaps = {name: np.asarray(each, np.float64) - reference for name, each in zip(GAPS, log_probs, strict=True)}
    rivals = {
        "closed form": closed_form(mixture),
        "amortized": fast,
        "learned": learned,
        "Hutchinson": learned.with_divergence(fd.HutchinsonDivergence(jr.key(2))),
        "exact": exact,
    }

    settings, starts = adapted(model_of(rivals["closed form"], observed, noise), observed)
    result: dict = {
        "in view": float(share),
        "fit": fit_seconds,
        "distillation": report.seconds,
        "amortization": report.amortization.summary() if report.amortization else None,
    } | {
        name: {"bias": float(gap.mean()), "rmse": float(np.sqrt(np.mean(np.square(gap))))} for name, gap in gaps.items()
    }
    for name, prior in rivals.items():
        result[name] = timed(model_of(prior, observed, noise), settings, starts)
        print(dim, name, result[name], flush=True)
    return result


def profile() -> dict:
    """Time the value and gradient of four points alone in each dimension, and one matrix product."""
    square = jr.normal(jr.key(11), (1024, 1024))
    product = jax.jit(jnp.matmul)
    seconds = in_turn({"product": lambda: product(square, square)}, ROUNDS)["product"]
    rows = []
    for dim in DIMENSIONS:
        mixture, learned, _ = mixture_flow(dim)
        # The time does not depend on the learned weights.
        fast, _ = fd.distill(jr.key(1), learned, labels=1024, training=fd.Training(steps=1), progress=False)
        starts = jnp.asarray(mixture.sample(CHAINS, 12), float)
        priors = {"closed form": closed_form(mixture), "amortized": fast}
        loops = {name: loop(prior, starts) for name, prior in priors.items()}
        times = in_turn({name: functools.partial(run, starts) for name, run in loops.items()}, ROUNDS)
        cost = loops["amortized"].cost_analysis()
        rows.append(
            {"dim": dim, "flop": cost["flops"], "bytes": cost["bytes accessed"]}
            | {name: 1e6 / LOOP * each for name, each in times.items()}
        )
        print("profile", rows[-1], flush=True)
    return {"flop a second": 2 * 1024**3 / seconds, "rows": rows}


def loop(prior: dist.Distribution, starts: jax.Array) -> jax.stages.Compiled:
    """A compiled loop of values and gradients at a few points, each of which moves slightly along its gradient."""

    def step(points: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        values, slopes = jax.vmap(jax.value_and_grad(prior.log_prob))(points)
        return points + 1e-4 * slopes, values

    return jax.jit(lambda points: jax.lax.scan(step, points, None, length=LOOP)).lower(starts).compile()


def population() -> dict:
    """Sample the posteriors of 1,000 objects with a correlated prior in 16 dimensions, one chain each, in one vectorized run."""
    mixture, learned, _ = mixture_flow(16, components=3)
    fast, report = fd.distill(jr.key(1), learned)
    truth = mixture.sample(OBJECTS, 8)
    observed = jnp.asarray(truth + NOISES[0] * np.random.default_rng(9).normal(size=truth.shape), float)
    result: dict = {"amortization": report.amortization.summary() if report.amortization else None}
    for name, prior in (("closed form", closed_form(mixture)), ("amortized", fast)):

        def model(y: jax.Array, prior: dist.Distribution = prior) -> None:
            theta = numpyro.sample("theta", prior)
            numpyro.sample("y", dist.Normal(theta, NOISES[0]).to_event(1), obs=y)

        # The time of a vectorized step is that of the chain with the longest tree.
        kernel = NUTS(model, max_tree_depth=5)

        def chain(key: jax.Array, y: jax.Array, kernel: NUTS = kernel) -> jax.Array:
            state = kernel.init(key, OBJECT_DRAWS, None, (y,), {})
            step = functools.partial(kernel.sample, model_args=(y,), model_kwargs={})
            _, draws = jax.lax.scan(lambda s, _: (step(s), s.z["theta"]), state, None, length=2 * OBJECT_DRAWS)
            return draws[OBJECT_DRAWS:]

        run = jax.jit(jax.vmap(chain))
        keys = jr.split(jr.key(10), OBJECTS)
        started = time.perf_counter()
        jax.block_until_ready(run(keys, observed))
        first = time.perf_counter() - started
        started = time.perf_counter()
        draws = np.asarray(run(keys, observed), np.float64)
        seconds = time.perf_counter() - started
        mean, deviation = draws.mean(1), draws.std(1)
        result[name] = {
            "first run": first,
            "seconds": seconds,
            "objects per second": OBJECTS / seconds,
            # Errors in posterior standard deviations: 1 if the posteriors have the right width.
            "calibration": float(np.sqrt(np.mean(np.square((truth - mean) / deviation)))),
            "rms error": float(np.sqrt(np.mean(np.square(truth - mean)))),
        }
        print("population", name, result[name], flush=True)
    return result


def main() -> None:
    """Compute the cells that are missing and write the page."""
    jobs: dict[str, Callable[[], dict]] = {str(dim): functools.partial(posterior, dim) for dim in DIMENSIONS}
    cells = cells_of(__doc__, "nuts", jobs | {"profile": profile, "population": population}, quick=("2",))
    picture(cells)
    PAGE.write_text(page(cells))


if __name__ == "__main__":
    main()
