"""Learned likelihoods beside known ones: single data sets, calibration, a hierarchy, and one posterior after another.

    python benchmarks/likelihoods.py            # about an hour on two cores; resumes
    python benchmarks/likelihoods.py --cached   # only the page, from the cells that are there

Writes docs/likelihoods.md.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, init_to_median
from scipy.stats import chisquare
from tables import cells_of, markdown, provenance

import flowdensity as fd

SIMULATIONS = 30_000
SETS = 100
"""Data sets of the calibration."""
RANKS = 99
"""Draws that the truth is ranked among."""
BINS = 10
Given = Callable[[dict[str, Any]], dist.Distribution]


class GAndK(dist.Distribution):
    """The g-and-k distribution (Rayner & MacGillivray 2002, Statistics and Computing 12), density by root finding."""

    arg_constraints = {name: constraints.real for name in ("a", "b", "g", "k")}
    support = constraints.real

    def __init__(self, a: Any, b: Any, g: Any, k: Any):
        self.a, self.b, self.g, self.k = a, b, g, k
        super().__init__(jnp.broadcast_shapes(*map(jnp.shape, (a, b, g, k))))

    def quantile(self, z: Any) -> Any:
        """Quantile at the standard-normal quantile `z`."""
        return self.a + self.b * (1.0 + 0.8 * jnp.tanh(self.g * z / 2.0)) * jnp.power(1.0 + z**2, self.k) * z

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return self.quantile(jr.normal(key, (*sample_shape, *self.batch_shape)))

    def log_prob(self, value: Any) -> Any:
        def halve(_: int, ends: tuple[Any, Any]) -> tuple[Any, Any]:
            middle = 0.5 * (ends[0] + ends[1])
            below = self.quantile(middle) < value
            return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        low, high = jax.lax.fori_loop(0, 40, halve, (jnp.full(shape, -12.0), jnp.full(shape, 12.0)))
        z = jax.lax.stop_gradient(0.5 * (low + high))
        # A step of Newton's method carries the derivatives of the root.
        slope = jax.jvp(self.quantile, (z,), (jnp.ones_like(z),))[1]
        z = z + (value - self.quantile(z)) / jax.lax.stop_gradient(slope)
        slope = jax.jvp(self.quantile, (z,), (jnp.ones_like(z),))[1]
        return dist.Normal().log_prob(z) - jnp.log(slope)


class Problem(NamedTuple):
    """A model whose likelihood is known: the prior of its parameters, p(y | parameters), and observations in a data set."""

    prior: dict[str, dist.Distribution]
    known: Given
    observations: int


SLOPES = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, -0.9]])
NOISE = np.array([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.1, 0.1, 0.6]])


def linear(values: dict[str, Any]) -> dist.Distribution:
    """Three observed coordinates of a linear-Gaussian model with two parameters."""
    return dist.MultivariateNormal(values["theta"] @ SLOPES.T, scale_tril=jnp.asarray(NOISE, float))


PROBLEMS = {
    "linear-Gaussian": Problem({"theta": dist.Normal().expand([2]).to_event(1)}, linear, 1),
    "g-and-k": Problem(
        {
            "a": dist.Normal(0.0, 1.0),
            "b": dist.LogNormal(0.0, 0.4),
            "g": dist.Normal(0.0, 1.0),
            "k": dist.LogNormal(-1.5, 0.4),
        },
        lambda values: GAndK(**values),
        20,
    ),
}


def simulate(problem: Problem, key: Any, count: int, observations: int) -> tuple[dict, Any]:
    """Parameters from the prior and `observations` from the model for each, parameters without their axis."""
    *keys, last = jr.split(key, 1 + len(problem.prior))
    values = {name: p.sample(k, (count,)) for k, (name, p) in zip(keys, problem.prior.items(), strict=True)}
    return values, problem.known(values).sample(last, (observations,)).swapaxes(0, 1)


@functools.cache
def learn(name: str) -> fd.FlowDensity:
    """p(y | parameters) from one observation for each of 30,000 parameters, by the defaults of `fit_flow`."""
    problem = PROBLEMS[name]
    values, y = simulate(problem, jr.key(0), SIMULATIONS, 1)
    return fd.fit_flow(jr.key(1), np.asarray(y[:, 0]), {n: np.asarray(v) for n, v in values.items()})[0]


def posterior(problem: Problem, likelihood: Given, key: Any, y: Any, warmup: int, samples: int, chains: int) -> dict:
    """NUTS for one data set."""

    def model() -> None:
        values = {name: numpyro.sample(name, prior) for name, prior in problem.prior.items()}
        with numpyro.plate("observations", problem.observations):
            numpyro.sample("y", likelihood(values), obs=y)

    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_median(num_samples=20)),
        num_warmup=warmup,
        num_samples=samples,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key)
    return mcmc.get_samples()


def single(name: str) -> dict:
    """Five data sets: posterior means and deviations under the learned and the known likelihood; then ranks."""
    problem = PROBLEMS[name]
    learned = learn(name)
    truths, sets = simulate(problem, jr.key(2), SETS, problem.observations)
    result: dict = {"mean gap": [], "deviation ratio": []}
    for row in range(5):
        known = posterior(problem, problem.known, jr.key(row), sets[row], 500, 2000, 4)
        draws = posterior(problem, learned.given, jr.key(row), sets[row], 500, 1000, 4)
        flat = {n: (np.asarray(draws[n], np.float64), np.asarray(known[n], np.float64)) for n in problem.prior}
        gaps = [np.abs(ours.mean(0) - theirs.mean(0)) / theirs.std(0) for ours, theirs in flat.values()]
        ratios = [ours.std(0) / theirs.std(0) for ours, theirs in flat.values()]
        result["mean gap"].append(np.hstack(gaps).tolist())
        result["deviation ratio"].append(np.hstack(ratios).tolist())
        print(name, row, result["mean gap"][-1], flush=True)

    for label, likelihood in (("learned", learned.given), ("known", problem.known)):

        def ranks(key: Any, y: Any, likelihood: Given = likelihood) -> dict:
            return posterior(problem, likelihood, key, y, 300, 5 * RANKS, 1)

        draws = jax.jit(jax.vmap(ranks))(jr.split(jr.key(3), SETS), sets)
        columns = []
        for site, prior in problem.prior.items():
            thinned = np.asarray(draws[site])[:, ::5].reshape(SETS, RANKS, -1)
            truth = np.asarray(truths[site]).reshape(SETS, 1, -1)
            columns += [np.sum(thinned < truth, axis=1)[:, i] for i in range(max(1, int(np.prod(prior.event_shape))))]
        counts = [np.histogram(ranks, bins=BINS, range=(0, RANKS + 1))[0] for ranks in columns]
        result[f"p, {label}"] = [float(chisquare(count).pvalue) for count in counts]
        result[f"counts, {label}"] = [count.tolist() for count in counts]
        print(name, label, result[f"p, {label}"], flush=True)
    return result


def hierarchy() -> dict:
    """Fifty groups with a normal population: its mean and deviation under the learned and the known likelihood."""
    problem, learned, groups = PROBLEMS["linear-Gaussian"], learn("linear-Gaussian"), 50
    result: dict = {"mean gap": [], "deviation ratio": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        theta = np.array([0.3, -0.2]) + np.array([0.7, 0.4]) * rng.normal(size=(groups, 2))
        y = theta @ SLOPES.T + rng.normal(size=(groups, 3)) @ NOISE.T

        def model(likelihood: Given, y: np.ndarray = y) -> None:
            mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            tau = numpyro.sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
            with numpyro.plate("groups", groups):
                z = numpyro.sample("z", dist.Normal().expand([2]).to_event(1))
                numpyro.sample("y", likelihood({"theta": mu + tau * z}), obs=jnp.asarray(y, float))

        both = {}
        for label, likelihood in (("learned", learned.given), ("known", problem.known)):
            mcmc = MCMC(
                NUTS(model),
                num_warmup=500,
                num_samples=1000,
                num_chains=2,
                chain_method="vectorized",
                progress_bar=False,
            )
            mcmc.run(jr.key(seed), likelihood)
            draws = mcmc.get_samples()
            both[label] = np.concatenate([np.asarray(draws["mu"]), np.log(np.asarray(draws["tau"]))], axis=1).astype(
                np.float64
            )
        ours, theirs = both["learned"], both["known"]
        result["mean gap"].append((np.abs(ours.mean(0) - theirs.mean(0)) / theirs.std(0)).tolist())
        result["deviation ratio"].append((ours.std(0) / theirs.std(0)).tolist())
        print("hierarchy", seed, result["mean gap"][-1], flush=True)
    return result


def sequential() -> dict:
    """A regression in two stages, the posterior of the first learned as the prior of the second, and in one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = 0.5 + 1.2 * x + 0.7 * rng.normal(size=60)
    supports = {"sigma": constraints.positive}

    def first() -> dict:
        return {
            "alpha": numpyro.sample("alpha", dist.Normal(0.0, 2.0)),
            "beta": numpyro.sample("beta", dist.Normal(0.0, 2.0)),
            "sigma": numpyro.sample("sigma", dist.HalfNormal(2.0)),
        }

    def run(prior: Callable[[], dict], rows: slice) -> dict:
        def model() -> None:
            v = prior()
            with numpyro.plate("rows", len(x[rows])):
                numpyro.sample("y", dist.Normal(v["alpha"] + v["beta"] * x[rows], v["sigma"]), obs=y[rows])

        mcmc = MCMC(
            NUTS(model), num_warmup=500, num_samples=5000, num_chains=4, chain_method="vectorized", progress_bar=False
        )
        mcmc.run(jr.key(1))
        return {name: np.asarray(mcmc.get_samples()[name], np.float64) for name in ("alpha", "beta", "sigma")}

    stage = run(first, slice(0, 30))
    learned, _ = fd.fit_flow(jr.key(0), stage, support=supports)
    second = run(lambda: fd.sample_sites("yesterday", learned), slice(30, 60))
    whole = run(first, slice(0, 60))
    return {
        name: {
            "mean gap": float(abs(second[name].mean() - whole[name].mean()) / whole[name].std()),
            "deviation ratio": float(second[name].std() / whole[name].std()),
            "moved": float(abs(stage[name].mean() - whole[name].mean()) / whole[name].std()),
        }
        for name in whole
    }


def page(cells: Mapping[str, dict]) -> str:
    """The page as Markdown, of the cells that there are."""
    parts = [
        "# Likelihoods\n\nLearned from 30,000 simulations, one observation each, with the defaults of `fit_flow`, and put beside "
        "the likelihood that the simulations came from. Differences of posterior means are in posterior standard deviations."
    ]
    singles = {name: cells[name] for name in PROBLEMS if name in cells}
    if singles:
        rows = [
            [
                f"{name}, {PROBLEMS[name].observations} observations",
                f"{np.median(c['mean gap']):.3f}",
                f"{np.max(c['mean gap']):.3f}",
                f"{np.min(c['deviation ratio']):.3f} to {np.max(c['deviation ratio']):.3f}",
                ", ".join(f"{p:.2f}" for p in c["p, learned"]),
                ", ".join(f"{p:.2f}" for p in c["p, known"]),
            ]
            for name, c in singles.items()
        ]
        header = [
            "",
            "difference of means: median",
            "largest",
            "ratio of sds",
            "p of uniform ranks, learned",
            "the same, known",
        ]
        parts.append(
            "## Single data sets\n\nMeans and sds of five data sets by NUTS. Then simulation-based calibration: ranks of the "
            f"truth among {RANKS} draws of the posterior of each of {SETS} data sets, NUTS vmapped over data sets; by parameter, "
            f"the p-value of a chi-squared test of uniformity in {BINS} bins.\n\n{markdown(header, rows)}"
        )
    if "hierarchy" in cells:
        c = cells["hierarchy"]
        rows = [
            [f"seed {seed}", *(f"{gap:.3f}" for gap in gaps), f"{min(ratios):.3f} to {max(ratios):.3f}"]
            for seed, (gaps, ratios) in enumerate(zip(c["mean gap"], c["deviation ratio"], strict=True))
        ]
        parts.append(
            "## A hierarchy\n\nFifty groups with one observation each, whose parameters have a normal population with mean "
            "mu and deviation tau. What the likelihood has not learned adds up over groups.\n\n"
            + markdown(["difference of means", "mu[0]", "mu[1]", "log tau[0]", "log tau[1]", "ratio of sds"], rows)
        )
    if "sequential" in cells:
        c = {name: each for name, each in cells["sequential"].items() if name != "made with"}
        rows = [[n, f"{e['moved']:.2f}", f"{e['mean gap']:.3f}", f"{e['deviation ratio']:.3f}"] for n, e in c.items()]
        parts.append(
            "## One posterior after another\n\nA regression with 60 rows: 30, whose posterior is learned as the prior of the "
            "other 30, beside all at once.\n\n"
            + markdown(["", "moved by the second half, in sd", "difference of means, in sd", "ratio of sds"], rows)
        )
    return "\n\n".join([*parts, provenance("python benchmarks/likelihoods.py", cells.values())]) + "\n"


def main() -> None:
    """Compute the cells that are missing and write the page."""
    jobs: dict[str, Callable[[], dict]] = {"sequential": sequential, "hierarchy": hierarchy}
    jobs |= {name: lambda name=name: single(name) for name in PROBLEMS}
    cells = cells_of(__doc__, "likelihoods", jobs)
    Path("docs/likelihoods.md").write_text(page(cells))


if __name__ == "__main__":
    main()
