"""What does a learned prior cost in NUTS? Time per leapfrog step, leapfrog steps per effective draw, time to compile.

    python benchmarks/nuts.py            # about an hour and a half on two cores; resumes
    python benchmarks/nuts.py --quick    # two and eight dimensions, no population; about ten minutes
    python benchmarks/nuts.py --cached   # only the page, from the cells that are there

The prior is a mixture of six Gaussians learned from 20,000 rows; the likelihood leaves one mode in view, so that effective
sample sizes mean something. All rivals run NUTS with one step size and one mass matrix, adapted under the closed-form prior,
from the same starts. Writes docs/nuts.md.
"""

import functools
import time
from collections.abc import Callable, Mapping
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
from tables import cells_of, markdown, provenance

import flowdensity as fd

NOISE, CHAINS = 0.4, 4
DRAWS = 500
SECONDS = 40.0
"""About as long may one run of a rival take: the slow ones make fewer draws."""
OBJECTS, OBJECT_DRAWS = 1000, 200
Model = Callable[..., None]


def observation(mixture: Mixture, component: int, noise: float) -> tuple[np.ndarray, float]:
    """What is observed, all coordinates with noise, and the share of the posterior in that component, in closed form."""
    observed = mixture.means[component] + noise * np.random.default_rng(2).normal(size=mixture.dim)
    return observed, in_view(mixture, observed, noise)[component]


def sampler(prior: dist.Distribution, observed: np.ndarray, draws: int, **options: Any) -> MCMC:
    """Four vectorised chains, not yet run."""

    def model() -> None:
        theta = numpyro.sample("theta", prior)
        numpyro.sample("y", dist.Normal(theta, NOISE).to_event(1), obs=jnp.asarray(observed, float))

    warmup = options.pop("warmup", 0)
    return MCMC(
        NUTS(model, **options),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )


def timed_run(mcmc: MCMC, key: jax.Array, starts: jax.Array) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, draws of shape `(chains, draws, dim)`, and leapfrog steps of each, shape `(chains, draws)`."""
    started = time.perf_counter()
    mcmc.run(key, init_params={"theta": starts}, extra_fields=("num_steps",))
    # A run returns before it is done: its draws are waited for.
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["theta"], np.float64)
    seconds = time.perf_counter() - started
    return seconds, draws, np.asarray(mcmc.get_extra_fields(group_by_chain=True)["num_steps"])


def effective(draws: np.ndarray) -> float:
    """Least effective sample size of a coordinate."""
    return float(min(effective_sample_size(draws[..., i]) for i in range(draws.shape[-1])))


def posterior(dim: int) -> dict:
    """All rivals on one posterior."""
    mixture, learned, fit_seconds = mixture_flow(dim)
    fast, report = fd.distill(jr.key(1), learned)
    observed, share = observation(mixture, 0, NOISE)
    exact = learned.with_divergence(fd.ExactDivergence())
    test = jnp.asarray(mixture.sample(2000, 7), float)
    gap = np.asarray(fast.log_prob(test) - exact.log_prob(test), np.float64)
    rivals = {
        "closed form": closed_form(mixture),
        "amortized": fast,
        "learned": learned,
        "Hutchinson": learned.with_divergence(fd.HutchinsonDivergence(jr.key(2))),
        "exact": exact,
    }

    adapting = sampler(rivals["closed form"], observed, DRAWS, warmup=DRAWS)
    timed_run(adapting, jr.key(3), jnp.asarray(np.tile(observed, (CHAINS, 1)), float))
    adapted = adapting.last_state.adapt_state
    starts = adapting.last_state.z["theta"]
    settings = {
        # Of the four chains', one for all.
        "step_size": float(np.median(adapted.step_size)),
        "inverse_mass_matrix": jnp.mean(next(iter(adapted.inverse_mass_matrix.values())), axis=0),
        "adapt_step_size": False,
        "adapt_mass_matrix": False,
    }
    result: dict = {
        "in view": float(share),
        "fit": fit_seconds,
        "distillation": report.seconds,
        "amortisation": report.amortisation.summary() if report.amortisation else None,
        "amortized less exact": {"bias": float(gap.mean()), "rmse": float(np.sqrt(np.mean(np.square(gap))))},
    }
    for name, prior in rivals.items():
        compiled, _, _ = timed_run(sampler(prior, observed, 1, **settings), jr.key(4), starts)
        # The steps of a draw are those of the chain with the most of them: the others wait.
        probe = sampler(prior, observed, 5, **settings)
        timed_run(probe, jr.key(5), starts)
        seconds, _, _ = timed_run(probe, jr.key(5), starts)
        count = int(np.clip(5 * SECONDS / seconds, 20, 10 * DRAWS))
        mcmc = sampler(prior, observed, count, **settings)
        timed_run(mcmc, jr.key(6), starts)
        seconds, draws, leapfrogs = timed_run(mcmc, jr.key(6), starts)
        result[name] = {
            "to first draw": compiled,
            "draws": count,
            "seconds": seconds,
            "per leapfrog": 1e3 * seconds / float(leapfrogs.max(0).sum()),
            "leapfrogs": float(leapfrogs.mean()),
            "ess": effective(draws),
            "leapfrogs per ess": float(leapfrogs.max(0).sum()) / effective(draws),
            "mean": draws.mean((0, 1)).tolist(),
            "deviation": draws.std((0, 1)).tolist(),
        }
        print(dim, name, result[name], flush=True)
    return result


def population() -> dict:
    """A correlated prior in 16 dimensions, and the posteriors of 1,000 objects, one chain each, in one vectorised run."""
    mixture, learned, _ = mixture_flow(16, components=3)
    fast, report = fd.distill(jr.key(1), learned)
    truth = mixture.sample(OBJECTS, 8)
    observed = jnp.asarray(truth + NOISE * np.random.default_rng(9).normal(size=truth.shape), float)
    result: dict = {"amortisation": report.amortisation.summary() if report.amortisation else None}
    for name, prior in (("closed form", closed_form(mixture)), ("amortized", fast)):

        def model(y: jax.Array, prior: dist.Distribution = prior) -> None:
            theta = numpyro.sample("theta", prior)
            numpyro.sample("y", dist.Normal(theta, NOISE).to_event(1), obs=y)

        # A step costs the vectorised run what the chain with the longest tree does.
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
            # Against the truth: 1 where the posteriors are as wide as they should be.
            "calibration": float(np.sqrt(np.mean(np.square((truth - mean) / deviation)))),
            "rms error": float(np.sqrt(np.mean(np.square(truth - mean)))),
        }
        print("population", name, result[name], flush=True)
    return result


def page(cells: Mapping[str, dict]) -> str:
    """The text of docs/nuts.md."""
    rivals = ("closed form", "amortized", "learned", "Hutchinson", "exact")
    rows = []
    for dim, cell in ((name, cell) for name, cell in cells.items() if name != "population"):
        unit = cell["closed form"]
        for rival in rivals:
            run = cell[rival]
            cost = run["per leapfrog"] * unit["leapfrogs per ess"]
            own = run["per leapfrog"] * run["leapfrogs per ess"]
            base = unit["per leapfrog"] * unit["leapfrogs per ess"]
            rows.append(
                [
                    f"{dim}, {rival}",
                    f"{run['per leapfrog']:.2f}",
                    f"{run['per leapfrog'] / unit['per leapfrog']:.1f}",
                    f"{run['leapfrogs per ess']:.1f}" if run["ess"] > 100 else "-",
                    f"{(own if run['ess'] > 100 else cost) / base:.1f}",
                    f"{run['to first draw']:.1f}",
                    f"{run['draws']}",
                ]
            )
    header = [
        "D, prior",
        "ms a leapfrog step",
        "over closed form",
        "leapfrog steps an effective draw",
        "time an effective draw, over closed form",
        "s to the first draw",
        "draws a chain",
    ]
    errors = markdown(
        ["D", "amortized less exact: mean", "root mean square", "share of the posterior in one component"],
        [
            [
                name,
                f"{cell['amortized less exact']['bias']:+.3f}",
                f"{cell['amortized less exact']['rmse']:.3f}",
                f"{cell['in view']:.4f}",
            ]
            for name, cell in cells.items()
            if name != "population"
        ],
    )
    text = (
        "# What a learned prior costs in NUTS\n\n"
        "Four vectorised chains under the same likelihood, with the prior as a closed-form mixture and as densities learned from "
        "20,000 of its rows. All run with the step size and mass matrix adapted under the closed form. A leapfrog step is one "
        "value and gradient of the log density of four points, and what NUTS does around it; compilation is apart. Where too few "
        "draws were affordable for an effective sample size of 100, the leapfrog steps of the closed form are taken for the "
        f"rival's own.\n\n{markdown(header, rows)}\n\n"
        f"How far the amortized density is from the flow with its exact divergence, on fresh draws of the mixture, in nats:\n\n"
        f"{errors}\n"
    )
    if "population" in cells:
        cell = cells["population"]
        table = markdown(
            ["prior", "objects a second", "s with compilation", "error of the posterior mean", "error over deviation"],
            [
                [
                    rival,
                    f"{cell[rival]['objects per second']:.1f}",
                    f"{cell[rival]['first run']:.0f}",
                    f"{cell[rival]['rms error']:.3f}",
                    f"{cell[rival]['calibration']:.3f}",
                ]
                for rival in ("closed form", "amortized")
            ],
        )
        text += (
            "\n## A population\n\nThe posteriors of 1,000 objects with a correlated prior in 16 dimensions, 200 draws of each "
            f"after as many of warm-up, in one vectorised run.\n\n{table}\n"
        )
    return f"{text}\n{provenance('python benchmarks/nuts.py', cells.values())}\n"


def main() -> None:
    """Compute the cells that are missing and write the page."""
    jobs: dict[str, Callable[[], dict]] = {str(dim): functools.partial(posterior, dim) for dim in (2, 8, 16, 32)}
    cells = cells_of(__doc__, "nuts", jobs | {"population": population}, quick=("2", "8"))
    Path("docs/nuts.md").write_text(page(cells))


if __name__ == "__main__":
    main()
