"""How close are amortized posteriors to reference posteriors? Tasks of sbibm (Lueckmann et al. 2021, arXiv 2101.04653).

    python benchmarks/amortized_posteriors.py                      # all tasks, with 10,000 and 1,000 simulations; resumes
    python benchmarks/amortized_posteriors.py --only 'sir-*'       # only some of them
    python benchmarks/amortized_posteriors.py --cached             # write only the page, from the cells computed so far

Needs the package sbibm-jax, and so Python 3.12, for the observations and their reference posteriors. Each task is written as a
numpyro model, and `fit_posterior` runs with its defaults. The figure is the accuracy of a classifier between 2,000 draws and
2,000 draws of the reference (C2ST): 0.5 if they are alike. Two more models have data sets
of many sizes (any_size.py): their posteriors are checked, refined and compared with those of NUTS. Writes the tables of
docs/any-model.md.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import any_size
import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.distributions import constraints
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

PAGE = Path("docs/any-model.md")
OBSERVATIONS, DRAWS = (1, 2, 3), 2_000
SIMULATIONS = (10_000, 1_000)
REFINED = ("gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture", "bernoulli_glm")
"""Tasks whose posteriors are refined as well. The others have other latent sites, or an ODE in the model."""
PUBLISHED = {
    ("gaussian_linear", 10_000): (0.543, 0.543),
    ("gaussian_linear_uniform", 10_000): (0.566, 0.562),
    ("gaussian_mixture", 10_000): (0.636, 0.717),
    ("bernoulli_glm", 10_000): (0.698, 0.590),
    ("sir", 10_000): (0.841, 0.734),
    ("lotka_volterra", 10_000): (0.997, 0.954),
    ("gaussian_linear", 1_000): (0.693, 0.606),
    ("gaussian_linear_uniform", 1_000): (0.731, 0.719),
    ("gaussian_mixture", 1_000): (0.741, 0.808),
    ("bernoulli_glm", 1_000): (0.854, 0.749),
    ("sir", 1_000): (0.967, 0.752),
    ("lotka_volterra", 1_000): (0.999, 0.991),
}
"""Mean C2ST of NPE and NLE over the same three observations: main_paper.csv in the repository sbi-benchmark/results on GitHub."""


def files(task: str) -> Path:
    """Folder of a task's files in the package sbibm-jax, which is not imported."""
    spec = importlib.util.find_spec("sbibm_jax")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("install sbibm-jax without its dependencies: pip install --no-deps sbibm-jax")
    return Path(spec.submodule_search_locations[0]) / "tasks" / task / "files"


def gaussian_linear() -> None:
    """A normal mean with a normal prior, in ten dimensions; both have variances of 0.1."""
    theta = numpyro.sample("theta", dist.Normal(0.0, math.sqrt(0.1)).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1))


def gaussian_linear_uniform() -> None:
    """The same with a uniform prior on [-1, 1]."""
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1))


def gaussian_mixture() -> None:
    """The common mean of two normal components of different width, in two dimensions."""
    theta = numpyro.sample("theta", dist.Uniform(-10.0, 10.0).expand([2]).to_event(1))
    scales = jnp.array([1.0, 0.1])[:, None] * jnp.ones(2)
    components = dist.Normal(jnp.broadcast_to(theta, (2, 2)), scales).to_event(1)
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), components))


class Sufficient(dist.Distribution):
    """Sufficient statistics of a logistic regression; the log density leaves out a term that is constant in the parameters."""

    support = constraints.real_vector
    has_rsample = False

    def __init__(self, design: jax.Array, theta: jax.Array):
        self.design, self.theta = design, theta
        super().__init__((), (design.shape[1],))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Statistics of a draw of all outcomes."""
        outcomes = dist.Bernoulli(logits=self.design @ self.theta).sample(key, sample_shape)
        return outcomes.astype(float) @ self.design

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log likelihood in nats, up to a constant."""
        return value @ self.theta - jnp.sum(jax.nn.softplus(self.design @ self.theta))


def bernoulli_glm() -> None:
    """A logistic regression with a smoothness prior, in ten dimensions, given its sufficient statistics."""
    design = jnp.asarray(np.load(files("bernoulli_glm") / "design_matrix.npz")["data"], float)
    size = 9
    differences = np.eye(size) - np.eye(size, k=-1)
    smooth = differences @ differences + np.diag(np.sqrt(np.arange(size) / size))
    precision = np.zeros((size + 1, size + 1))
    precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
    prior = dist.MultivariateNormal(jnp.zeros(size + 1), precision_matrix=jnp.asarray(precision, float))
    theta = numpyro.sample("theta", prior)
    numpyro.sample("x", Sufficient(design, theta))


def solved(field: Callable, start: jax.Array, theta: jax.Array, end: float, times: np.ndarray) -> jax.Array:
    """States of an ordinary differential equation at some times, shape `(times, states)`."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        0.0,
        end,
        0.01,
        start,
        theta,
        saveat=diffrax.SaveAt(ts=jnp.asarray(times, float)),
        stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5),
        max_steps=16**4,
        throw=False,
    ).ys


def sir() -> None:
    """An epidemic with unknown rates of contact and recovery; ten counts of the infected among 1,000 people."""
    theta = numpyro.sample("theta", dist.LogNormal(jnp.log(jnp.array([0.4, 0.125])), jnp.array([0.5, 0.2])).to_event(1))

    def field(t: float, y: jax.Array, theta: jax.Array) -> jax.Array:
        infections, recoveries = theta[0] * y[0] * y[1] / jnp.sum(y), theta[1] * y[1]
        return jnp.array([-infections, infections - recoveries, recoveries])

    infected = solved(field, jnp.array([1e6 - 1.0, 1.0, 0.0]), theta, 160.0, np.arange(0.0, 161.0, 17.0))[:, 1]
    numpyro.sample("x", dist.Binomial(1000, jnp.clip(infected / 1e6, 1e-10, 1.0 - 1e-7)).to_event(1))


def lotka_volterra() -> None:
    """Predators and prey with four unknown rates, at ten times each."""
    theta = numpyro.sample("theta", dist.LogNormal(jnp.array([-0.125, -3.0, -0.125, -3.0]), 0.5).to_event(1))

    def field(t: float, y: jax.Array, theta: jax.Array) -> jax.Array:
        prey, predators = y
        return jnp.array(
            [theta[0] * prey - theta[1] * prey * predators, theta[3] * prey * predators - theta[2] * predators]
        )

    states = solved(field, jnp.array([30.0, 1.0]), theta, 20.0, np.arange(0.0, 20.05, 2.1))
    flat = jnp.clip(states.T.reshape(-1), 1e-10, 1e4)
    numpyro.sample("x", dist.LogNormal(jnp.log(flat), 0.1).to_event(1))


MODELS: Mapping[str, Callable[[], None]] = {
    model.__name__: model
    for model in (gaussian_linear, gaussian_linear_uniform, gaussian_mixture, bernoulli_glm, sir, lotka_volterra)
}


def read(task: str, observation: int) -> tuple[np.ndarray, np.ndarray]:
    """An observation and its reference draws."""
    folder = files(task) / f"num_observation_{observation}"
    x = pd.read_csv(folder / "observation.csv").to_numpy(float)[0]
    return x, pd.read_csv(folder / "reference_posterior_samples.csv.bz2").to_numpy(float)


def c2st(draws: np.ndarray, reference: np.ndarray) -> float:
    """Cross-validated accuracy of sbibm's classifier: a perceptron of two layers with ten units per dimension."""
    mean, sd = draws.mean(0), draws.std(0)
    rows = np.concatenate([(draws - mean) / sd, (reference - mean) / sd])
    labels = np.repeat([0, 1], [len(draws), len(reference)])
    width = 10 * rows.shape[1]
    classifier = MLPClassifier(
        activation="relu", hidden_layer_sizes=(width, width), max_iter=1000, solver="adam", random_state=1
    )
    folds = KFold(5, shuffle=True, random_state=1)
    return float(np.mean(cross_val_score(classifier, rows, labels, cv=folds, scoring="accuracy")))


class Figures(NamedTuple):
    """C2ST of each observation, learned and refined, and the Pareto k of the refinement."""

    learned: list[float]
    refined: list[float]
    pareto_k: list[float]


def measure(task: str, simulations: int) -> dict:
    """Learn the posterior of a task and compare it with the reference posteriors."""
    started = time.perf_counter()
    posterior, report = fd.fit_posterior(
        jr.key(0), MODELS[task], observed="x", num_simulations=simulations, progress=False
    )
    seconds = time.perf_counter() - started
    print(report.summary(), flush=True)
    figures, drawing = Figures([], [], []), []
    for observation in OBSERVATIONS:
        x, reference = read(task, observation)
        reference = np.random.default_rng(0).permutation(reference)[:DRAWS]
        density = posterior.given({"x": x})
        started = time.perf_counter()
        draws = np.asarray(density.unpack(density.sample(jr.key(1), (DRAWS,)))["theta"], np.float64)
        drawing.append(time.perf_counter() - started)
        figures.learned.append(c2st(draws, reference))
        if task in REFINED:
            refined = posterior.refine(jr.key(2), {"x": x}, DRAWS, progress=False)
            values = refined.posterior["posterior"]["theta"].to_numpy().reshape(-1, reference.shape[1])
            figures.refined.append(c2st(values, reference))
            figures.pareto_k.append(float(refined.pareto_k))
        print(task, simulations, observation, figures, flush=True)
    return {"seconds": seconds, "seconds to draw": min(drawing), **figures._asdict()}


def main() -> None:
    """Compute the cells that are missing and write the tables."""
    names = {f"{task}-{count}": (task, count) for count in SIMULATIONS for task in MODELS}
    jobs = {name: partial(measure, *which) for name, which in names.items()}
    jobs |= {name: partial(any_size.measure, name) for name in any_size.PROBLEMS}
    cells = cells_of(__doc__, "amortized_posteriors", jobs)
    write_tasks({which: cells[name] for name, which in names.items() if name in cells})
    write_sizes({name: cells[name] for name in any_size.PROBLEMS if name in cells})


def write_tasks(cells: Mapping[tuple[str, int], dict]) -> None:
    """Write the table of the tasks of sbibm."""
    rows = [
        [
            f"{task}, {count:,} simulations",
            f"{np.mean(cell['learned']):.3f}",
            f"{np.mean(cell['refined']):.3f}" if cell["refined"] else "",
            f"{max(cell['pareto_k']):.2f}" if cell["pareto_k"] else "",
            *(f"{published:.3f}" for published in PUBLISHED[task, count]),
            f"{cell['seconds']:.0f}",
            f"{cell['seconds to draw']:.2f}",
        ]
        for (task, count), cell in cells.items()
    ]
    header = ["task", "C2ST", "C2ST, refined", "largest Pareto k", "NPE", "NLE", "seconds to learn"]
    table = markdown([*header, f"seconds for {DRAWS:,} draws"], rows)
    made = provenance("python benchmarks/amortized_posteriors.py", cells.values())
    replace_block(PAGE, "tasks", f"{table}\n\n{made}")


def write_sizes(cells: Mapping[str, dict]) -> None:
    """Write the table of the models whose data sets have many sizes."""
    rows = []
    for name, cell in cells.items():
        sizes = any_size.PROBLEMS[name].sizes
        k, by_weights = np.asarray(cell["pareto_k"]), cell["methods"].count("weights")
        rows.append(
            [
                f"{name}, {sizes[0]} to {sizes[-1]}",
                ", ".join(f"{cell['smallest p-value'][str(size)]:.2g}" for size in sizes)
                + f"; {cell['threshold']:.2g}",
                f"{max(cell['differences']):.2f}",
                f"{np.sum(k < cell['threshold of k'])} of {len(k)}",
                f"{by_weights} of {len(k)}",
                f"{cell['seconds']:.0f}",
                f"{cell['seconds to draw']:.2f}",
                f"{cell['compilations']}",
            ]
        )
    header = [
        "model, rows",
        "smallest p-values at three sizes, and their threshold",
        "largest difference of means from NUTS, sds",
        "Pareto k below its threshold",
        "corrected by weights",
        "seconds to learn",
        "seconds for 1,000 draws",
        "compilations of new sizes",
    ]
    made = provenance("python benchmarks/amortized_posteriors.py", cells.values())
    replace_block(PAGE, "sizes", f"{markdown(header, rows)}\n\n{made}")


if __name__ == "__main__":
    main()
