"""How accurate is each divergence, and what does it cost? Twisted chains, digits and patches; flows, diffusions and a CNF.

    python benchmarks/divergence.py                   # all cells: about an hour and a half on one core; resumes
    python benchmarks/divergence.py --only 'flow-*'   # only some of them, to share the work between processes
    python benchmarks/divergence.py --quick           # only the flow in two dimensions
    python benchmarks/divergence.py --cached          # write only the page, from the cells computed so far

Writes the tables and the picture of docs/which-divergence.md.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import fits
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from accuracy import log_prob
from divergence_page import picture, tables
from noise_predictor import BETAS, train
from pictures import digits, patches, without_mean
from tables import cells_of, replace_block
from turns import in_turn
from twisted import TwistedChain

import flowdensity as fd

PAGE = Path("docs/which-divergence.md")
KEYS, ROUNDS, BATCH = 4, 7, 100
"""Number of keys over which the errors of random estimators are averaged, of timing rounds, and of points in a timed batch."""
IMAGE_ROUNDS, IMAGE_RIVALS = 2, ("hutchinson-1", "hutchinson-4", "hutch++-3")
"""Number of timing rounds of a convolutional flow on one image, and the estimators that are timed in addition to the head."""

Rows = tuple[np.ndarray, np.ndarray]


def chain(dim: int) -> Rows:
    """Training rows and fresh points of a twisted chain."""
    law = TwistedChain(dim)
    return law.rows(fits.ROWS, 1000), law.rows(1000, 2000)


def standardized(dim: int) -> Rows:
    """The same with columns of mean 0 and standard deviation 1, as DDPM expects."""
    data, points = chain(dim)
    return (data - data.mean(0)) / data.std(0), (points - data.mean(0)) / data.std(0)


def flow(name: str) -> Callable[[np.ndarray], fd.FlowDensity]:
    """A flow with a distilled divergence in any dimension, and the defaults otherwise. Other benchmarks can share it."""
    return lambda data: fits.flow(name, data, divergence=fd.objectives.LangevinStein())[0]


def diffusion(data: np.ndarray) -> fd.FlowDensity:
    """A diffusion on the variance-preserving path, fitted with the defaults."""
    return fd.fit_diffusion(jr.key(0), data, path=fd.paths.VariancePreserving())[0]


def cnf(data: np.ndarray) -> fd.FlowDensity:
    """A continuous normalizing flow by maximum likelihood, with a smaller network and few steps, because a step is expensive."""
    network = fd.networks.ResidualMLP(jr.key(1), data.shape[1], width=128, depth=1)
    density, _ = fd.fit_likelihood(
        jr.key(0), data, network=network, divergence=fd.ExactDivergence(), training=fd.Training(steps=300)
    )
    learned, _ = fd.fit_divergence(jr.key(2), density.model, data)
    return density.with_divergence(learned)


def pretrained(*, features: bool) -> Callable[[np.ndarray], fd.FlowDensity]:
    """A flax noise predictor under the DDPM convention, with or without its hidden features, and a distilled divergence."""

    def fit(data: np.ndarray) -> fd.FlowDensity:
        network = train(data)

        def predict(step: jax.Array, x: jax.Array, context: None) -> Any:
            hidden = network.hidden(x, step)
            return (network.outward(hidden), hidden) if features else network.outward(hidden)

        model = fd.from_ddpm(predict, data.shape[1:], betas=BETAS)
        divergence, _ = fd.fit_divergence(jr.key(0), model, data)
        return fd.FlowDensity(model, divergence=divergence)

    return fit


def unet(name: str, steps: int, batch_size: int, **shape: Any) -> Callable[[np.ndarray], fd.FlowDensity]:
    """A convolutional flow on images, with fewer and smaller steps than the default."""

    def fit(data: np.ndarray) -> fd.FlowDensity:
        network = fd.networks.UNet(jr.key(1), data.shape[1:], **shape)
        return fits.flow(name, data, network=network, training=fd.Training(steps=steps, batch_size=batch_size))[0]

    return fit


CELLS: dict[str, tuple[Callable[[], Rows], Callable[[np.ndarray], fd.FlowDensity]]] = {
    **{f"flow-{dim}": (partial(chain, dim), flow(f"chain-{dim}")) for dim in (2, 8, 32)},
    "VP-8": (partial(chain, 8), diffusion),
    "CNF-8": (partial(chain, 8), cnf),
    "DDPM-8": (lambda: standardized(8), pretrained(features=True)),
    "DDPM-8, no features": (lambda: standardized(8), pretrained(features=False)),
    "digits": (digits, flow("digits")),
    "patches-63": (lambda: tuple(map(without_mean, patches(8, 20_000, 1000, grey=True))), flow("patches-63")),
    "patches-8x8x1": (lambda: patches(8, 20_000, 1000, grey=True), flow("patches-8x8x1")),
}
"""Data and fit of each cell. The exact divergence is the reference at every point."""
IMAGES: dict[str, tuple[Callable[[], Rows], Callable[[np.ndarray], fd.FlowDensity]]] = {
    "patches-16x16x3": (lambda: patches(16, 20_000, 64, grey=False), unet("patches-16x16x3", 1000, 32, width=16)),
}
"""Data and fit of cells where the exact divergence is affordable at a few points only."""
OBJECTIVES: dict[str, tuple[fd.objectives.AbstractObjective, int]] = {
    "plain, with the model's score": (fd.objectives.ScoreStein(), 512),
    "kernels, rho = 1": (fd.objectives.LangevinStein(rho=1.0), 512),
    "kernels, rho = 0.3": (fd.objectives.LangevinStein(rho=0.3), 512),
    "kernels, rho = 0.1": (fd.objectives.LangevinStein(rho=0.1), 512),
    "regression on Hutchinson": (fd.objectives.HutchinsonRegression(), 512),
    "regression, three times the draws": (fd.objectives.HutchinsonRegression(), 1536),
    "rho = 0.1, about the data": (fd.objectives.LangevinStein(source="data"), 512),
    "rho = 0.1, about model samples": (fd.objectives.LangevinStein(source="model"), 512),
    "rho = 0.1, no tails": (fd.objectives.LangevinStein(tails=0.0), 512),
}
"""Rows of the ablation: the objective of a head of the same flow, and the number of draws per step."""
LEVELS = {"digits": 17, "patches-8x8x1": 256}
"""Number of levels of dequantized data."""
REGRESSED = ("flow-2", "flow-8", "flow-32")
"""Cells in which a second head is regressed on Hutchinson's estimates."""


def random_estimators(key: jax.Array) -> dict[str, fd.divergences.AbstractDivergence]:
    """The estimators with random probes, all with one key."""
    return {
        "hutchinson-1": fd.HutchinsonDivergence(key, 1),
        "hutchinson-4": fd.HutchinsonDivergence(key, 4),
        "hutchinson-16": fd.HutchinsonDivergence(key, 16),
        "hutch++-3": fd.HutchPlusPlusDivergence(key, 3),
        "hutch++-15": fd.HutchPlusPlusDivergence(key, 15),
    }


def errors(difference: np.ndarray) -> dict:
    """The error columns of the table, over all axes."""
    return {
        "bias": float(difference.mean()),
        "sd": float(difference.std()),
        "rmse": float(np.sqrt(np.mean(np.square(difference)))),
        "max": float(np.abs(difference).max()),
    }


def random_errors(difference: Callable[[fd.divergences.AbstractDivergence], np.ndarray]) -> dict[str, dict]:
    """`errors` of each estimator with probes, over several keys."""
    drawn = [random_estimators(key) for key in jr.split(jr.key(7), KEYS)]
    return {kind: errors(np.stack([difference(each[kind]) for each in drawn])) for kind in drawn[0]}


def costs(rivals: Mapping[str, fd.FlowDensity], points: np.ndarray, rounds: int = ROUNDS) -> dict[str, dict]:
    """Milliseconds of log_prob and of its value and gradient, as medians of rounds in turn, and XLA's working memory."""
    batch = jnp.asarray(points, float)
    functions = {
        "log_prob": jax.jit(lambda d, x: jnp.sum(d.log_prob(x))),
        "gradient": jax.jit(jax.value_and_grad(lambda d, x: jnp.sum(d.log_prob(x)), argnums=1)),
    }
    result: dict[str, dict] = {name: {} for name in rivals}
    for what, function in functions.items():
        compiled = {name: function.lower(rival, batch).compile() for name, rival in rivals.items()}
        calls = {name: partial(compiled[name], rival, batch) for name, rival in rivals.items()}
        for name, seconds in in_turn(calls, rounds).items():
            result[name][what] = 1e3 * seconds
            result[name][f"{what} memory"] = compiled[name].memory_analysis().temp_size_in_bytes
    return result


def compare(name: str) -> dict:
    """Fit one model and compare the accuracy, time and memory of all divergences on held-out points."""
    (data, points), fit = CELLS[name][0](), CELLS[name][1]
    learned = fit(data)
    exact = learned.with_divergence(fd.ExactDivergence())
    reference = log_prob(exact, points, 50)
    rivals: dict[str, dict] = {"exact": errors(np.zeros_like(reference))}
    rivals |= random_errors(lambda estimator: log_prob(exact.with_divergence(estimator), points, 250) - reference)
    heads = {"stein": learned}
    if name in REGRESSED:
        regressed, _ = fd.fit_divergence(jr.key(3), learned.model, data, objective=fd.objectives.HutchinsonRegression())
        heads["regressed"] = learned.with_divergence(regressed)
    for kind, density in heads.items():
        rivals[kind] = errors(log_prob(density, points, 250) - reference)
    timed = {"stein": learned, "exact": exact} | {
        kind: exact.with_divergence(estimator) for kind, estimator in random_estimators(jr.key(8)).items()
    }
    few = points[: BATCH if learned.model.dim < 64 else 20]
    for kind, cost in costs(timed, few).items():
        rivals[kind] |= cost
    if "regressed" in heads:
        rivals["regressed"] |= {what: value for what, value in rivals["stein"].items() if what not in errors(reference)}
    return {
        "rows": rivals,
        "dim": learned.model.dim,
        "points": len(points),
        "levels": LEVELS.get(name),
        "held out": float(reference.mean()),
        "trained on": float(log_prob(exact, data[: len(points)], 50).mean()),
    }


def compare_images(name: str) -> dict:
    """Compare divergences on images at eight angles of two points with the exact one, and compute bits per dimension."""
    (data, points), fit = IMAGES[name][0](), IMAGES[name][1]
    learned = fit(data)
    model = learned.model
    assert isinstance(model, fd.models.AbstractGaussianFlow)
    angles = jnp.linspace(0.0, 0.5 * jnp.pi, 10)[1:-1]
    whiten = jax.vmap(lambda x: model.scaling.whiten(x)[0])
    held_out = whiten(jnp.asarray(points[:2], float))
    noise = jr.normal(jr.key(5), held_out.shape)

    one = jax.jit(lambda d, m, phi, x, e: d(m, phi, jnp.sin(phi) * x + jnp.cos(phi) * e, jnp.zeros(0))[1])

    def at(divergence: fd.divergences.AbstractDivergence) -> np.ndarray:
        """Divergences, shape `(angles, points)`."""
        pairs = [(phi, x, e) for phi in angles for x, e in zip(held_out, noise, strict=True)]
        return np.asarray([one(divergence, model, *pair) for pair in pairs], np.float64).reshape(len(angles), -1)

    reference = at(Blockwise())
    rows = {"exact": errors(np.zeros_like(reference)), "stein": errors(at(learned.divergence) - reference)}
    rows |= random_errors(lambda estimator: at(estimator) - reference)
    estimators = random_estimators(jr.key(8))
    timed = {"stein": learned} | {kind: learned.with_divergence(estimators[kind]) for kind in IMAGE_RIVALS}
    for kind, cost in costs(timed, points[:1], IMAGE_ROUNDS).items():
        rows[kind] |= cost
    bits = fd.bits_per_dimension(log_prob(learned, points, 8), model.dim, unit=1 / 256)
    return {
        "rows": rows,
        "dim": model.dim,
        "points": reference.size,
        "spread": float(reference.std()),
        "bits": float(bits.mean()),
        "bits se": float(bits.std() / np.sqrt(len(bits))),
    }


class Blockwise(fd.divergences.AbstractDivergence):
    """The exact divergence with the basis in blocks, for dimensions where the whole basis does not fit in memory."""

    def __call__(self, model: Any, time: Any, state: Any, context: Any) -> tuple[Any, Any]:
        velocity, tangent = jax.linearize(lambda y: model.velocity(time, y, context), state)

        def entry(i: jax.Array) -> jax.Array:
            return tangent(jnp.zeros_like(state).at[i].set(1.0))[i]

        return velocity, jnp.sum(jax.lax.map(entry, jnp.arange(state.size), batch_size=64))


def ablation(name: str) -> dict:
    """Train heads of one flow on different objectives for 3,000 steps, with errors on held-out points and at 4x their scale."""
    data, points = CELLS[name][0]()
    density = CELLS[name][1](data).with_divergence(fd.ExactDivergence())
    center = data.mean(0)
    places = {"1x": points, "4x": center + 4.0 * (points - center)}
    references = {scale: log_prob(density, at, 50) for scale, at in places.items()}
    rows = {}
    for objective_name, (objective, draws) in OBJECTIVES.items():
        learned, report = fd.fit_divergence(
            jr.key(1), density.model, data, objective=objective, training=fd.Training(steps=3000, batch_size=draws)
        )
        rows[objective_name] = {
            scale: errors(log_prob(density.with_divergence(learned), at, 250) - references[scale])
            for scale, at in places.items()
        } | {"seconds": report.histories["divergence"].seconds}
        print(objective_name, rows[objective_name], flush=True)
    return {"rows": rows, "points": len(points)}


def jobs() -> dict[str, Callable[[], dict]]:
    """Every cell by name."""
    return (
        {name: (lambda name=name: compare(name)) for name in CELLS}
        | {"ablation-flow-8": lambda: ablation("flow-8")}
        | {name: (lambda name=name: compare_images(name)) for name in IMAGES}
    )


def main() -> None:
    """Compute the cells that are missing and write tables and picture."""
    cells = cells_of(__doc__, "divergence", jobs(), quick=("flow-2",))
    replace_block(PAGE, "divergences", tables(cells, jobs()))
    picture(cells)


if __name__ == "__main__":
    main()
