"""Does NUTS find the posterior under a learned prior? Compared with the true prior, across modes, and in any units.

    python benchmarks/posteriors.py            # about three quarters of an hour on two cores; resumes
    python benchmarks/posteriors.py --cached   # write only the page, from the cells computed so far

Writes docs/posteriors.md.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from chains import run_nuts
from fits import mixture_flow
from mixtures import closed_form, in_view
from numpyro.handlers import reparam
from numpyro.infer import init_to_value
from tables import cells_of, markdown, provenance, wrapped

import flowdensity as fd

ROWS = 20_000
UNITS = {"1e3": (1e3, 1.0), "1e6": (1e6, 1e5)}
"""Mean and standard deviation of the data."""


def agreement() -> dict:
    """Posterior moments in four dimensions, under the learned prior and under the mixture it was learned from."""
    (mixture, density, _), component, seen, noise = mixture_flow(4), 3, np.array([0, 1, 2]), 0.4
    observed = mixture.means[component, seen] + np.array([0.3, -0.2, 0.1])

    def posterior(prior: dist.Distribution, samples: int) -> tuple[np.ndarray, dict]:
        def model() -> None:
            theta = numpyro.sample("theta", prior)
            numpyro.sample("y", dist.Normal(theta[seen], noise).to_event(1), obs=jnp.asarray(observed, float))

        start = init_to_value(values={"theta": jnp.asarray(mixture.means[component], float)})
        draws, run = run_nuts(model, warmup=500, samples=samples, start=start)
        return draws.reshape(-1, mixture.dim), run

    truth, long_run = posterior(closed_form(mixture), 10_000)
    draws, run = posterior(density, 1500)
    return {
        # The comparison assumes a posterior with one mode, so one component should have nearly all of it.
        "in view": float(in_view(mixture, observed, noise, seen)[component]),
        "mean": truth.mean(0).tolist(),
        "deviation": truth.std(0).tolist(),
        "mean gap": ((draws.mean(0) - truth.mean(0)) / truth.std(0)).tolist(),
        "deviation ratio": (draws.std(0) / truth.std(0)).tolist(),
        "learned": run,
        "closed form": long_run,
    }


def modes() -> dict:
    """Mode weights in eight dimensions with six separated modes, sampled in the noise and in theta."""
    (mixture, density, _), observed, noise = mixture_flow(8), 0.0, 1.5

    def shares(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
        which = np.argmax(mixture.log_joint(points), axis=0)
        return np.bincount(which, weights, minlength=len(mixture.means)) / np.sum(weights)

    # The reference is importance sampling: draws of the mixture, weighted by their likelihood.
    points = mixture.sample(400_000, 5)
    weights = np.exp(-0.5 * np.square((observed - points[:, 0]) / noise))
    truth = shares(points, weights)

    def model() -> None:
        theta = numpyro.sample("theta", density)
        numpyro.sample("y", dist.Normal(theta[0], noise), obs=observed)

    result: dict = {"truth": truth.tolist(), "ess of the truth": float(weights.sum() ** 2 / np.square(weights).sum())}
    for name, config in (("FlowReparam", {"theta": fd.FlowReparam()}), ("log_prob", {})):
        draws, run = run_nuts(reparam(model, config=config), warmup=500, samples=1000)
        flat = draws.reshape(-1, mixture.dim)
        visited = [np.argmax(mixture.log_joint(chain), axis=0) for chain in draws]
        result[name] = run | {
            "shares": shares(flat, np.ones(len(flat))).tolist(),
            "shares of each chain": [shares(chain, np.ones(len(chain))).tolist() for chain in draws],
            "changes of mode": [int(np.sum(np.diff(which) != 0)) for which in visited],
        }
    return result


def units(location: float, deviation: float) -> dict:
    """Sample a curved density far from zero by plain NUTS from numpyro's default start."""

    def draw(count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        first, second = rng.normal(size=(2, count))
        # Both columns have mean 0 and variance 1.
        return np.stack([first, (np.square(first) - 1.0) / np.sqrt(2.0) * 0.6 + 0.8 * second], 1)

    density, _ = fd.fit_flow(jr.key(0), location + deviation * draw(ROWS, 0))
    draws, run = run_nuts(lambda: numpyro.sample("theta", density), warmup=500, samples=1000)
    standard = (draws.reshape(-1, 2) - location) / deviation
    angles = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    slope = jax.jit(jax.vmap(jax.grad(density.log_prob)))
    home = {}
    for scales in (10, 100, 1000):
        slopes = np.asarray(slope(jnp.asarray(location + deviation * scales * directions, float)), np.float64)
        inward = np.isfinite(slopes).all(1) & (np.sum(slopes * directions, axis=1) < 0.0)
        home[str(scales)] = float(inward.mean())
    return run | {"mean": standard.mean(0).tolist(), "deviation": standard.std(0).tolist(), "home": home}


def page(cells: Mapping[str, dict]) -> str:
    """The page as Markdown, with the cells that have been computed."""
    parts = [
        "# How good are the posteriors?",
        wrapped(
            "This page shows whether NUTS finds the right posterior under a learned prior. It tests a posterior with one mode, "
            "one with several modes, and data in large units."
        ),
        wrapped(
            "All runs use NUTS with four vectorized chains and numpyro's defaults. The priors are learned from 20,000 rows with "
            "the defaults of `fit_flow`. The mixtures have six components."
        ),
    ]
    if "agreement" in cells:
        c = cells["agreement"]
        rows = [
            [f"theta[{i}]", f"{mean:+.3f}", f"{sd:.3f}", f"{gap:+.3f}", f"{ratio:.3f}"]
            for i, (mean, sd, gap, ratio) in enumerate(
                zip(c["mean"], c["deviation"], c["mean gap"], c["deviation ratio"], strict=True)
            )
        ]
        parts += [
            "## Compared with the true prior",
            wrapped(
                "The prior is a mixture of six Gaussians in four dimensions. Three coordinates are observed with noise 0.4, so "
                f"that one component has {100 * c['in view']:.2f} % of the posterior. The reference is NUTS with the closed form "
                f"({c['closed form']['ess']:.0f} effective draws). The run with the learned prior has {c['learned']['ess']:.0f} "
                f"effective draws and R-hat {c['learned']['r_hat']:.3f}."
            ),
            markdown(["", "true mean", "true sd", "difference of means, in sd", "ratio of sds"], rows),
        ]
    if "modes" in cells:
        c = cells["modes"]
        rows = [
            [
                f"`{name}`",
                f"{c[name]['r_hat']:.3f}",
                f"{c[name]['ess']:.0f}",
                f"{np.max(np.abs(np.subtract(c[name]['shares'], c['truth']))):.3f}",
                f"{np.max(np.abs(np.subtract(c[name]['shares of each chain'], c['truth']))):.3f}",
                f"{np.mean(c[name]['changes of mode']):.0f}",
                f"{c[name]['leapfrogs']:.0f}",
            ]
            for name in ("FlowReparam", "log_prob")
        ]
        header = ["method", "R-hat", "smallest ESS of 4,000", "largest error of a mode weight, all chains"]
        header += ["largest error of a mode weight, single chain", "mode changes per chain", "leapfrog steps per draw"]
        parts += [
            "## Across modes",
            wrapped(
                "The prior has six separated modes in eight dimensions, and the likelihood depends on one coordinate. The true "
                f"weights of the modes are {', '.join(f'{share:.3f}' for share in c['truth'])}, by importance sampling from the "
                f"mixture ({c['ess of the truth']:.0f} effective draws)."
            ),
            markdown(header, rows),
        ]
    scaled = {name: cells[f"units-{name}"] for name in UNITS if f"units-{name}" in cells}
    if scaled:
        rows = [
            [
                f"{UNITS[name][0]:g} +- {UNITS[name][1]:g}",
                f"{c['r_hat']:.3f}",
                f"{c['ess']:.0f}",
                ", ".join(f"{m:+.3f}" for m in c["mean"]),
                ", ".join(f"{d:.3f}" for d in c["deviation"]),
                str(c["divergences"]),
                ", ".join(f"{100 * share:.0f} %" for share in c["home"].values()),
            ]
            for name, c in scaled.items()
        ]
        header = ["mean +- sd of the data", "R-hat", "smallest ESS of 4,000", "means", "sds", "divergent transitions"]
        header += ["gradients towards the data, at 10, 100, 1,000 sds"]
        parts += [
            "## In any units",
            wrapped(
                "A curved density of two columns is sampled by plain NUTS from numpyro's default start, within two units of "
                "zero. Means and standard deviations are in units of the true standard deviation, so 0 and 1 are correct. The "
                "last column shows the share of gradients that point towards the data."
            ),
            markdown(header, rows),
        ]
    return "\n\n".join([*parts, provenance("python benchmarks/posteriors.py", cells.values())]) + "\n"


def main() -> None:
    """Compute the cells that are missing and write the page."""
    jobs: dict[str, Callable[[], dict]] = {"modes": modes, "agreement": agreement}
    jobs |= {f"units-{name}": lambda values=values: units(*values) for name, values in UNITS.items()}
    cells = cells_of(__doc__, "posteriors", jobs)
    Path("docs/posteriors.md").write_text(page(cells))


if __name__ == "__main__":
    main()
