"""What does a learned prior cost in NUTS? Time per leapfrog step, leapfrog steps per effective draw, time to compile.

    taskset -c 0 python benchmarks/nuts.py   # about an hour and a half on one core; resumes
    python benchmarks/nuts.py --quick        # two and eight dimensions, no population; about ten minutes
    python benchmarks/nuts.py --cached       # only the page, from the cells that are there

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

PAGE, PICTURE = Path("docs/nuts.md"), Path("docs/images/nuts.png")
RIVALS = ("closed form", "amortized", "learned", "Hutchinson", "exact")
NOISES, CHAINS = (0.4, 0.2, 0.1), 4
WARMUP, CHUNK, MOST, SECONDS = 500, 5, 5000, 30.0
"""A rival makes draws in calls of five, until it has 5,000 of each chain or half a minute has passed."""
ENOUGH = 100
"""Effective draws from which on those of a rival count."""
OBJECTS, OBJECT_DRAWS = 1000, 200


def observation(mixture: Mixture) -> tuple[np.ndarray, float, float]:
    """An observation of all coordinates that leaves one component 99 % of the posterior, its noise, and that share exactly."""
    error = np.random.default_rng(2).normal(size=mixture.dim)
    for noise in NOISES:
        for component, mean in enumerate(mixture.means):
            share = in_view(mixture, mean + noise * error, noise)[component]
            if share > 0.99:
                return mean + noise * error, noise, share
    raise ValueError("no observation of this mixture leaves one component in view")


def model_of(prior: dist.Distribution, observed: np.ndarray, noise: float) -> Callable[[], None]:
    """The prior, observed with noise in every coordinate."""

    def model() -> None:
        theta = numpyro.sample("theta", prior)
        numpyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=jnp.asarray(observed, float))

    return model


def adapted(model: Callable[[], None], start: np.ndarray) -> tuple[dict, jax.Array]:
    """Step size and mass matrix, of several chains one for all, and where the chains ended."""
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
    """Four vectorised chains, in calls of one compiled function, until enough time has passed."""
    kernel = NUTS(model, **settings)
    started = time.perf_counter()
    state = kernel.init(jr.split(jr.key(4), CHAINS), 0, {"theta": starts}, (), {})

    @jax.jit
    def advance(state: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        def step(state: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state = kernel.sample(state, (), {})
            return state, (state.z["theta"], state.num_steps)

        return jax.lax.scan(step, state, None, length=CHUNK)

    # The first call is compilation too.
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
    # The steps of a draw are those of the chain with the most of them: the others wait.
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
    """Least effective sample size of a coordinate."""
    return float(min(effective_sample_size(draws[..., i]) for i in range(draws.shape[-1])))


def posterior(dim: int) -> dict:
    """All rivals on one posterior."""
    mixture, learned, fit_seconds = mixture_flow(dim)
    fast, report = fd.distill(jr.key(1), learned)
    observed, noise, share = observation(mixture)
    exact = learned.with_divergence(fd.ExactDivergence())
    test = jnp.asarray(mixture.sample(2000, 7), float)
    reference = np.asarray(exact.log_prob(test), np.float64)
    gaps = {
        "amortized less exact": np.asarray(fast.log_prob(test), np.float64) - reference,
        "learned less exact": np.asarray(learned.log_prob(test), np.float64) - reference,
        "truth less exact": mixture.log_prob(np.asarray(test, np.float64)) - reference,
    }
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
        "amortisation": report.amortisation.summary() if report.amortisation else None,
    } | {
        name: {"bias": float(gap.mean()), "rmse": float(np.sqrt(np.mean(np.square(gap))))} for name, gap in gaps.items()
    }
    for name, prior in rivals.items():
        result[name] = timed(model_of(prior, observed, noise), settings, starts)
        print(dim, name, result[name], flush=True)
    return result


def population() -> dict:
    """A correlated prior in 16 dimensions, and the posteriors of 1,000 objects, one chain each, in one vectorised run."""
    mixture, learned, _ = mixture_flow(16, components=3)
    fast, report = fd.distill(jr.key(1), learned)
    truth = mixture.sample(OBJECTS, 8)
    observed = jnp.asarray(truth + NOISES[0] * np.random.default_rng(9).normal(size=truth.shape), float)
    result: dict = {"amortisation": report.amortisation.summary() if report.amortisation else None}
    for name, prior in (("closed form", closed_form(mixture)), ("amortized", fast)):

        def model(y: jax.Array, prior: dist.Distribution = prior) -> None:
            theta = numpyro.sample("theta", prior)
            numpyro.sample("y", dist.Normal(theta, NOISES[0]).to_event(1), obs=y)

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


def price(cell: Mapping[str, dict], rival: str) -> float:
    """Time of an effective draw, over that under the closed form."""
    run, unit = cell[rival], cell["closed form"]
    leapfrogs = (run if run["ess"] > ENOUGH else unit)["leapfrogs per ess"]
    return run["per leapfrog"] * leapfrogs / (unit["per leapfrog"] * unit["leapfrogs per ess"])


def picture(cells: Mapping[str, dict]) -> None:
    """Milliseconds a leapfrog step, and the price of an effective draw, against the dimension."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    dims = [name for name in cells if name != "population"]
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
    colours = dict(zip(RIVALS, ("0.5", "#cc3311", "#ee7733", "#4477aa", "#000000"), strict=True))
    for rival in RIVALS:
        style: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.2, "color": colours[rival], "label": rival}
        axes[0].plot([int(d) for d in dims], [cells[d][rival]["per leapfrog"] for d in dims], **style)
        axes[1].plot([int(d) for d in dims], [price(cells[d], rival) for d in dims], **style)
    axes[0].set(ylabel="ms a leapfrog step of four chains")
    axes[1].set(ylabel="time an effective draw,\nover that under the closed form")
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="dimension")
        ax.set_xticks([int(d) for d in dims])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=160)
    plt.close(figure)


def page(cells: Mapping[str, dict]) -> str:
    """The text of docs/nuts.md."""
    rows = []
    for dim, cell in ((name, cell) for name, cell in cells.items() if name != "population"):
        unit = cell["closed form"]
        for rival in RIVALS:
            run = cell[rival]
            rows.append(
                [
                    f"{dim}, {rival}",
                    f"{run['per leapfrog']:.3f}" if run["per leapfrog"] < 1.0 else f"{run['per leapfrog']:.1f}",
                    f"{run['per leapfrog'] / unit['per leapfrog']:.1f}",
                    f"{run['leapfrogs per ess']:.1f}" if run["ess"] > ENOUGH else "-",
                    f"{price(cell, rival):.1f}",
                    f"{run['compilation']:.1f}",
                    f"{run['draws']}",
                ]
            )
    header = [
        "D, prior",
        "ms a leapfrog step",
        "over closed form",
        "leapfrog steps an effective draw",
        "time an effective draw, over closed form",
        "s to compile",
        "draws a chain",
    ]
    gaps = [name for name in next(iter(cells.values())) if name.endswith("less exact")]
    errors = markdown(
        ["D", *(f"{name}: mean, root mean square" for name in gaps), "share of the posterior in one component"],
        [
            [name, *(f"{cell[gap]['bias']:+.3f}, {cell[gap]['rmse']:.3f}" for gap in gaps), f"{cell['in view']:.4f}"]
            for name, cell in cells.items()
            if name != "population"
        ],
    )
    reports = "\n".join(
        f"- D = {name}: {cell['amortisation']}." for name, cell in cells.items() if name != "population"
    )
    text = (
        "# What a learned prior costs in NUTS\n\n"
        "Four vectorised chains under the same likelihood, with the prior as a closed-form mixture and as densities learned from "
        "20,000 of its rows. All run with the step size and mass matrix adapted under the closed form. A leapfrog step is one "
        "value and gradient of the log density of four points, and what NUTS does around it, on one core; compilation is apart. "
        f"Where too few draws were affordable for an effective sample size of {ENOUGH}, the leapfrog steps of the closed form "
        "are taken for the rival's own.\n\n"
        "![Time of a leapfrog step and of an effective draw against the dimension](images/nuts.png)\n\n"
        f"{markdown(header, rows)}\n\n"
        "How far each is from the flow with its exact divergence, on fresh draws of the mixture, in nats. The truth is the "
        "mixture itself: where it is further away than the amortized density, what that misses is the flow's own error.\n\n"
        f"{errors}\n\nWhat the reports of `distill` said of it:\n\n{reports}\n"
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
    return f"{text}\n{provenance('taskset -c 0 python benchmarks/nuts.py', cells.values())}\n"


def main() -> None:
    """Compute the cells that are missing and write the page."""
    jobs: dict[str, Callable[[], dict]] = {str(dim): functools.partial(posterior, dim) for dim in (2, 8, 16, 32)}
    cells = cells_of(__doc__, "nuts", jobs | {"population": population}, quick=("2", "8"))
    picture(cells)
    PAGE.write_text(page(cells))


if __name__ == "__main__":
    main()
