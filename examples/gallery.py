"""The pictures of the gallery: eight things that a learned density can do, each with the code that draws it.

    python examples/gallery.py                # all of them
    python examples/gallery.py moons rounded  # some of them

They are saved in docs/images/gallery, or in the folder given with --output.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

# --8<-- [start:imports]
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from matplotlib.figure import Figure
from numpyro.distributions import constraints
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer, load_diabetes, make_moons

import flowdensity as fd

# --8<-- [end:imports]


def moons() -> Figure:
    """A density learned from samples, on a grid."""
    # --8<-- [start:moons]
    rows, _ = make_moons(5000, noise=0.1, random_state=0)
    density, _ = fd.fit_flow(jax.random.key(0), rows)

    x, y = np.meshgrid(np.linspace(-1.6, 2.6, 200), np.linspace(-1.1, 1.6, 140))
    heights = np.exp(density.log_prob(jnp.stack([x, y], axis=-1)))
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.6), sharex=True, sharey=True)
    axes[0].plot(*rows.T, ".", color="0.4", markersize=1)
    axes[0].set(title="samples", xlabel="x[0]", ylabel="x[1]")
    axes[1].pcolormesh(x, y, heights, cmap="Blues")
    axes[1].set(title="learned density", xlabel="x[0]")
    # --8<-- [end:moons]
    return figure


def columns() -> Figure:
    """Real columns, against samples of the density that was learned from them."""
    # --8<-- [start:columns]
    table = load_breast_cancer(as_frame=True).data[["mean radius", "mean texture", "mean smoothness"]]
    density, _ = fd.fit_flow(jax.random.key(0), table)

    axes = fd.plots.plot_density(jax.random.key(1), density, table)
    # --8<-- [end:columns]
    return axes[0, 0].figure


def sites() -> Figure:
    """Named sites with a support: the posterior of one analysis, as a prior for the next."""
    # --8<-- [start:sites]
    posterior = az.load_arviz_data("non_centered_eight")["posterior"][["mu", "tau"]]
    density, _ = fd.fit_flow(jax.random.key(0), posterior, support={"tau": constraints.positive})

    axes = fd.plots.plot_density(jax.random.key(1), density, posterior)
    # --8<-- [end:sites]
    return axes[0, 0].figure


def posterior() -> Figure:
    """A learned prior and the posterior of one noisy observation."""
    # --8<-- [start:posterior]
    rows, _ = make_moons(5000, noise=0.1, random_state=0)
    prior, _ = fd.fit_flow(jax.random.key(0), rows)
    observed = jnp.array([0.5, 0.2])

    def model(y: jax.Array) -> None:
        theta = numpyro.sample("theta", prior)
        numpyro.sample("y", dist.Normal(theta, 0.4).to_event(1), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1000)
    mcmc.run(jax.random.key(1), observed)
    figure, axis = plt.subplots(figsize=(4.2, 2.8))
    axis.plot(*prior.sample(jax.random.key(2), (2000,)).T, ".", color="0.75", markersize=2, label="prior")
    axis.plot(*mcmc.get_samples()["theta"].T, ".", markersize=2, label="posterior")
    axis.plot(*observed, "x", color="black", label="observed, sd 0.4")
    axis.set(xlabel="theta[0]", ylabel="theta[1]")
    axis.legend(markerscale=2)
    # --8<-- [end:posterior]
    return figure


def likelihood() -> Figure:
    """The likelihood of a simulator, learned from pairs of parameters and observations."""
    # --8<-- [start:likelihood]
    rng = np.random.default_rng(0)
    theta = rng.uniform(-3.0, 3.0, 10_000)
    sign = rng.choice([-1.0, 1.0], len(theta))  # unseen: the simulator takes one of two branches
    y = sign * np.exp(-(theta**2)) * 2.0 + np.sin(theta) + rng.gumbel(0.0, 0.15, len(theta))
    density, _ = fd.fit_flow(jax.random.key(0), y, context=theta)

    grid = np.linspace(-3.0, 4.0, 300)
    contexts = np.linspace(-3.0, 3.0, 121)
    heights = np.exp([density.given(context).log_prob(grid) for context in contexts])
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.6), sharex=True, sharey=True)
    axes[0].plot(theta, y, ".", color="0.4", markersize=1)
    axes[0].set(title="simulated pairs", xlabel="theta", ylabel="y")
    axes[1].pcolormesh(contexts, grid, heights.T, cmap="Blues")
    axes[1].set(title="learned p(y | theta)", xlabel="theta")
    # --8<-- [end:likelihood]
    return figure


def rounded() -> Figure:
    """A rounded column: the probabilities of the recorded values."""
    # --8<-- [start:rounded]
    index = load_diabetes(scaled=False).data[:, 2]  # body mass index of 442 patients, recorded to a tenth
    density, _ = fd.fit_flow(jax.random.key(0), fd.dequantize(jax.random.key(1), index, unit=0.1))
    recorded = fd.Rounded(density, unit=0.1)

    values, counts = np.unique(index.round(1), return_counts=True)
    grid = np.arange(160, 440) / 10
    figure, axis = plt.subplots(figsize=(5.6, 2.4))
    axis.vlines(values, 0.0, counts / len(index), color="0.7", label="recorded")
    axis.plot(grid, np.exp(recorded.log_prob(grid)), ".", markersize=2, label="fd.Rounded")
    axis.set(xlabel="body mass index", ylabel="probability", ylim=(0.0, None))
    axis.legend()
    # --8<-- [end:rounded]
    return figure


def modes() -> Figure:
    """A prior with separate modes: a chain in theta stays in one, a chain in the noise of the flow does not."""
    # --8<-- [start:modes]
    rng = np.random.default_rng(0)
    rows = rng.choice([-2.0, 2.0], (4000, 1)) * [1.0, 0.5] + 0.3 * rng.normal(size=(4000, 2))
    prior, _ = fd.fit_flow(jax.random.key(0), rows)

    def model() -> None:
        numpyro.sample("theta", prior)

    def draws(model: Callable[[], None]) -> jax.Array:
        mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=300)
        mcmc.run(jax.random.key(1))
        return mcmc.get_samples()["theta"]

    figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.2), sharey=True)
    axes[0].plot(draws(model)[:, 0], ".", markersize=3)
    axes[0].set(title="NUTS on theta", xlabel="draw", ylabel="theta[0]")
    axes[1].plot(draws(reparam(model, config={"theta": fd.FlowReparam()}))[:, 0], ".", markersize=3)
    axes[1].set(title="NUTS on the noise, with FlowReparam", xlabel="draw")
    # --8<-- [end:modes]
    return figure


def errors() -> Figure:
    """How far off a distilled log density is, near the data and away from them."""
    # --8<-- [start:errors]
    rows, _ = make_moons(5000, noise=0.1, random_state=0)
    density, _ = fd.fit_flow(jax.random.key(0), rows)
    fast, _ = fd.distill(jax.random.key(1), density)

    held_out, _ = make_moons(1000, noise=0.1, random_state=1)
    axes = fd.plots.plot_errors(fd.diagnose(jax.random.key(2), fast, held_out))
    # --8<-- [end:errors]
    return axes[0].figure


PICTURES = {each.__name__: each for each in (moons, columns, sites, posterior, likelihood, rounded, modes, errors)}


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"pictures to draw: {', '.join(PICTURES)}")
    parser.add_argument("--output", type=Path, default=Path("docs/images/gallery"), help="folder of the pictures")
    args = parser.parse_args()
    if unknown := set(args.names) - set(PICTURES):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.names or PICTURES:
        figure = PICTURES[name]()
        figure.savefig(args.output / f"{name}.png")
        plt.close(figure)


if __name__ == "__main__":
    main()
