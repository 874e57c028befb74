"""Compare learned likelihoods with known ones: single data sets, calibration, a hierarchy, and sequential updating.

    python benchmarks/likelihoods.py            # about two hours on two cores; resumes
    python benchmarks/likelihoods.py --cached   # write only the tables, from the cells computed so far

Writes the tables of docs/likelihoods.md.
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
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

SIMULATIONS = 30_000
SETS = 100
"""Number of data sets of the calibration."""
RANKS = 99
"""Number of posterior draws among which the true parameter is ranked."""
Given = Callable[[dict[str, Any]], dist.Distribution]


class GAndK(dist.Distribution):
    """The g-and-k distribution (Rayner & MacGillivray 2002, Statistics and Computing 12), with its density by root finding."""

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
        # One step of Newton's method gives the root its derivatives.
        slope = jax.jvp(self.quantile, (z,), (jnp.ones_like(z),))[1]
        z = z + (value - self.quantile(z)) / jax.lax.stop_gradient(slope)
        slope = jax.jvp(self.quantile, (z,), (jnp.ones_like(z),))[1]
        return dist.Normal().log_prob(z) - jnp.log(slope)


class Problem(NamedTuple):
    """A model with a known likelihood: the prior, p(y | parameters), and the numbers of observations in its data sets."""

    prior: dict[str, dist.Distribution]
    known: Given
    observations: tuple[int, ...]


SLOPES = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, -0.9]])
NOISE = np.array([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.1, 0.1, 0.6]])


def linear(values: dict[str, Any]) -> dist.Distribution:
    """Three observed coordinates of a linear-Gaussian model with two parameters."""
    return dist.MultivariateNormal(values["theta"] @ SLOPES.T, scale_tril=jnp.asarray(NOISE, float))


PROBLEMS = {
    "linear-Gaussian": Problem({"theta": dist.Normal().expand([2]).to_event(1)}, linear, (1,)),
    "g-and-k": Problem(
        {
            "a": dist.Normal(0.0, 1.0),
            "b": dist.LogNormal(0.0, 0.4),
            "g": dist.Normal(0.0, 1.0),
            "k": dist.LogNormal(-1.5, 0.4),
        },
        lambda values: GAndK(**values),
        (1, 4, 20),
    ),
}


def simulate(problem: Problem, key: Any, count: int, observations: int) -> tuple[dict, Any]:
    """Draw parameters from the prior and `observations` observations for each of them."""
    *keys, last = jr.split(key, 1 + len(problem.prior))
    values = {name: p.sample(k, (count,)) for k, (name, p) in zip(keys, problem.prior.items(), strict=True)}
    return values, problem.known(values).sample(last, (observations,)).swapaxes(0, 1)


@functools.cache
def learn(name: str) -> fd.AmortizedDensity:
    """Learn p(y | parameters) from 30,000 simulations of one observation, with the defaults of `fit_flow` and `distill`."""
    problem = PROBLEMS[name]
    values, y = simulate(problem, jr.key(0), SIMULATIONS, 1)
    density, _ = fd.fit_flow(jr.key(1), np.asarray(y[:, 0]), {n: np.asarray(v) for n, v in values.items()})
    fast, report = fd.distill(jr.key(2), density)
    print(name, report.summary(), flush=True)
    return fast


def model_of(problem: Problem, likelihood: Given, observations: int) -> Callable[[Any], None]:
    """The numpyro model of one data set of a problem, with a given likelihood."""

    def model(y: Any) -> None:
        values = {name: numpyro.sample(name, prior) for name, prior in problem.prior.items()}
        with numpyro.plate("observations", observations):
            numpyro.sample("y", likelihood(values), obs=y)

    return model


def sampled(model: Callable[..., None], samples: int, *args: Any) -> dict:
    """Posterior draws by NUTS for each site, of shape `(draws, elements)`."""
    kernel = NUTS(model, init_strategy=init_to_median(num_samples=20))
    mcmc = MCMC(
        kernel,
        num_warmup=500,
        num_samples=samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(1), *args)
    draws = mcmc.get_samples()
    return {name: np.asarray(each, np.float64).reshape(len(each), -1) for name, each in draws.items()}


def beside(ours: np.ndarray, theirs: np.ndarray) -> tuple[list[float], list[float]]:
    """Differences of posterior means in standard deviations of the second posterior, and ratios of standard deviations."""
    gaps = np.abs(ours.mean(0) - theirs.mean(0)) / theirs.std(0)
    return gaps.tolist(), (ours.std(0) / theirs.std(0)).tolist()


def single(name: str, observations: int) -> dict:
    """Compare posteriors of five data sets under the learned and the known likelihood, and calibrate both."""
    problem = PROBLEMS[name]
    likelihoods = {"learned": learn(name).given, "known": problem.known}
    _, sets = simulate(problem, jr.key(2), 5, observations)
    result: dict = {"mean gap": [], "deviation ratio": []}
    for y in sets:
        ours, theirs = (
            np.hstack([*sampled(model_of(problem, likelihood, observations), 2000, y).values()])
            for likelihood in likelihoods.values()
        )
        for key, values in zip(result, beside(ours, theirs), strict=True):
            result[key].append(values)
        print(name, observations, result["mean gap"][-1], flush=True)
    for label, likelihood in likelihoods.items():
        ranks = fd.simulation_based_calibration(
            jr.key(3),
            model_of(problem, likelihood, observations),
            simulator=model_of(problem, problem.known, observations),
            simulations=SETS,
            draws=RANKS,
            model_args=(sets[0],),
        )
        result[f"p, {label}"] = np.hstack([np.ravel(ranks.p_values[site]) for site in problem.prior]).tolist()
        print(name, observations, label, ranks.summary(), flush=True)
    return result


def hierarchy(groups: int) -> dict:
    """Compare the mean and standard deviation of a population under the learned and the known likelihood."""
    problem, learned = PROBLEMS["linear-Gaussian"], learn("linear-Gaussian")
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

        ours, theirs = (sampled(model, 1000, likelihood) for likelihood in (learned.given, problem.known))
        gaps, ratios = beside(*(np.hstack([d["mu"], np.log(d["tau"])]) for d in (ours, theirs)))
        result["mean gap"].append(gaps)
        result["deviation ratio"].append(ratios)
        print(groups, "groups", seed, gaps, flush=True)
    return result


def sequential() -> dict:
    """Compare a regression in one stage with two stages, where the posterior of the first is learned as the next prior."""
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

        draws = sampled(model, 5000)
        return {name: draws[name][:, 0] for name in ("alpha", "beta", "sigma")}

    stage = run(first, slice(0, 30))
    learned, _ = fd.fit_flow(jr.key(0), stage, support=supports)
    second = run(lambda: fd.sample_sites("yesterday", learned), slice(30, 60))
    whole = run(first, slice(0, 60))
    before, ours, theirs = (np.column_stack([*each.values()]) for each in (stage, second, whole))
    (gaps, ratios), (moved, _) = beside(ours, theirs), beside(before, theirs)
    return {
        name: {"mean gap": gap, "deviation ratio": ratio, "moved": step}
        for name, gap, ratio, step in zip(whole, gaps, ratios, moved, strict=True)
    }


def single_table(cells: Mapping[str, dict]) -> str:
    """The table of single data sets and calibration, with the cells that have been computed."""
    header = [
        *("", "median difference of means", "largest difference of means", "ratio of sds"),
        *("p-values, learned likelihood", "p-values, known likelihood"),
    ]
    rows = [
        [
            name,
            f"{np.median(c['mean gap']):.3f}",
            f"{np.max(c['mean gap']):.3f}",
            f"{np.min(c['deviation ratio']):.3f} to {np.max(c['deviation ratio']):.3f}",
            ", ".join(f"{p:.2f}" for p in c["p, learned"]),
            ", ".join(f"{p:.2f}" for p in c["p, known"]),
        ]
        for name, c in cells.items()
    ]
    return markdown(header, rows)


def hierarchy_table(cells: Mapping[str, dict]) -> str:
    """The table of hierarchies, with one row for each seed."""
    rows = [
        [f"{name}, seed {seed}", *(f"{gap:.3f}" for gap in gaps), f"{min(ratios):.3f} to {max(ratios):.3f}"]
        for name, c in cells.items()
        for seed, (gaps, ratios) in enumerate(zip(c["mean gap"], c["deviation ratio"], strict=True))
    ]
    return markdown(["difference of means", "mu[0]", "mu[1]", "log tau[0]", "log tau[1]", "ratio of sds"], rows)


def sequential_table(cells: Mapping[str, dict]) -> str:
    """The table of the regression in two stages."""
    (cell,) = cells.values()
    rows = [
        [name, f"{each['moved']:.2f}", f"{each['mean gap']:.3f}", f"{each['deviation ratio']:.3f}"]
        for name, each in cell.items()
        if name != "made with"
    ]
    moved = "shift of the mean caused by the second 30 rows, in sd"
    return markdown(["", moved, "difference of means, in sd", "ratio of sds"], rows)


class Section(NamedTuple):
    """A table of the page and the cells that it shows."""

    table: Callable[[Mapping[str, dict]], str]
    jobs: dict[str, Callable[[], dict]]


SECTIONS = {
    "sequential": Section(sequential_table, {"sequential": sequential}),
    "hierarchy": Section(
        hierarchy_table, {f"{groups} groups": functools.partial(hierarchy, groups) for groups in (10, 50, 250)}
    ),
    "single": Section(
        single_table,
        {
            f"{name}, {count} observation{'s' * (count > 1)}": functools.partial(single, name, count)
            for name, problem in PROBLEMS.items()
            for count in problem.observations
        },
    ),
}


def main() -> None:
    """Compute the cells that are missing and write the tables."""
    jobs = {name: job for section in SECTIONS.values() for name, job in section.jobs.items()}
    cells = cells_of(__doc__, "likelihoods", jobs)
    for name, section in SECTIONS.items():
        found = {job: cells[job] for job in section.jobs if job in cells}
        if found:
            text = f"{section.table(found)}\n\n{provenance('python benchmarks/likelihoods.py', found.values())}"
            replace_block(Path("docs/likelihoods.md"), name, text)


if __name__ == "__main__":
    main()
