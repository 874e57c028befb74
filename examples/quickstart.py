"""A learned prior in NUTS, from data to posterior.

Half of a table of breast tumours teaches the joint density of five measurements. For 40 patients of the other half, two of
the five are observed with noise, and NUTS infers the remaining three under that prior. The same is done under a
multivariate normal fitted to the same half, and both are scored against the truth.

    python examples/quickstart.py
"""

import argparse
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_breast_cancer

import flowdensity as fd

COLUMNS = ["mean radius", "mean texture", "mean smoothness", "mean compactness", "mean symmetry"]
OBSERVED, INFERRED = [0, 3], [1, 2, 4]
NOISE = 0.05
"""Standard deviation of the logarithm of an observation: measurements are good to 5 %."""
PATIENTS = 40


def load(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training half and held-out half of the table, shapes (284, 5) and (285, 5)."""
    table = load_breast_cancer(as_frame=True).data[COLUMNS].to_numpy()
    order = np.random.default_rng(seed).permutation(len(table))
    return table[order[: len(table) // 2]], table[order[len(table) // 2 :]]


def model(prior: dist.Distribution, measured: jax.Array) -> None:
    """Each patient has five true measurements; radius and compactness are seen with 5 % error."""
    with numpyro.plate("patient", len(measured)):
        tumour = numpyro.sample("tumour", prior)
        seen = jnp.log(tumour[:, jnp.array(OBSERVED)])
        numpyro.sample("measured", dist.LogNormal(seen, NOISE).to_event(1), obs=measured)


def infer(prior: dist.Distribution, measured: jax.Array, seed: int, progress: bool) -> MCMC:
    """Posterior of all patients in one run: two chains, vectorized.

    The learned prior is sampled in the standard-normal noise that its flow starts from.
    """
    strategies = {"tumour": fd.FlowReparam()} if isinstance(prior, fd.FlowDensity) else {}
    mcmc = MCMC(
        NUTS(reparam(model, config=strategies), max_tree_depth=6),
        num_warmup=150,
        num_samples=250,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=progress,
    )
    mcmc.run(jr.key(seed), prior, measured)
    return mcmc


def spread_score(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Energy score of each patient, shape `(patients,)`; in one dimension it is the CRPS. Smaller is better.

    Args:
        draws: posterior draws, shape `(draws, patients, dim)`.
        truth: true values, shape `(patients, dim)`.
    """
    half = len(draws) // 2
    to_truth = np.linalg.norm(draws - truth, axis=-1).mean(0)
    # Chains are interleaved before the halves are taken, so that the pairs are independent.
    order = np.random.default_rng(0).permutation(len(draws))
    apart = np.linalg.norm(draws[order[:half]] - draws[order[half : 2 * half]], axis=-1).mean(0)
    return to_truth - 0.5 * apart


def scores(draws: np.ndarray, truth: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """CRPS of each column, energy score and coverage of the 90 % intervals: one number a patient."""
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    table = {f"CRPS {name}": spread_score(draws[..., i : i + 1], truth[:, i : i + 1]) for i, name in enumerate(names)}
    table["energy score"] = spread_score(draws, truth)
    table["90 % coverage"] = np.mean((low <= truth) & (truth <= high), axis=1)
    return table


def print_scores(learned: dict[str, np.ndarray], normal: dict[str, np.ndarray]) -> None:
    """Means over patients, and the difference with its paired standard error."""
    print(f"\n{'mean over patients':<24}{'learned':>10}{'normal':>10}{'difference':>13}{'paired se':>11}")
    for name, ours in learned.items():
        difference = ours - normal[name]
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        print(f"{name:<24}{ours.mean():>10.4f}{normal[name].mean():>10.4f}{difference.mean():>+13.4f}{error:>11.4f}")


def picture(file: Path, train: np.ndarray, prior: fd.FlowDensity, draws: np.ndarray, truth: np.ndarray) -> None:
    """Draw the learned density of two columns against the data, and each posterior against the truth.

    Args:
        file: where to save it.
        train: the rows the prior was learned from, shape `(rows, 5)`.
        prior: the learned density.
        draws: posterior draws of the inferred columns, shape `(draws, patients, 3)`.
        truth: their true values, shape `(patients, 3)`.
    """
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.8), layout="constrained")
    x, y = 0, 3
    samples = np.asarray(prior.sample(jr.key(1), (40_000,)))
    ends = np.quantile(samples[:, [x, y]], [0.001, 0.999], axis=0)
    counts, *edges = np.histogram2d(
        samples[:, x], samples[:, y], bins=64, range=(ends + 0.15 * np.diff(ends, axis=0) * [[-1], [1]]).T
    )
    counts = gaussian_filter(counts, 1.2)
    # Contours that hold 50, 80 and 95 % of the learned density.
    heights = np.sort(counts.ravel())[::-1]
    shares = np.cumsum(heights) / heights.sum()
    levels = [heights[np.searchsorted(shares, share)] for share in (0.95, 0.8, 0.5)]
    middles = [0.5 * (edge[1:] + edge[:-1]) for edge in edges]
    axes[0].contourf(*middles, counts.T, levels=[*levels, counts.max()], cmap="Blues", alpha=0.8)
    axes[0].plot(train[:, x], train[:, y], ".", color="black", markersize=2.5, alpha=0.6)
    axes[0].set(xlabel=COLUMNS[x], ylabel=COLUMNS[y], title="learned density and data")
    middle, low, high = np.median(draws, 0), *np.quantile(draws, [0.05, 0.95], 0)
    for axis, column, name in zip(axes[1:], range(3), (COLUMNS[i] for i in INFERRED), strict=True):
        bars = np.stack([middle - low, high - middle])[..., column]
        axis.errorbar(
            truth[:, column], middle[:, column], bars, fmt="o", markersize=3, linewidth=0.8, color="C0", alpha=0.8
        )
        span = min(truth[:, column].min(), low[:, column].min()), max(truth[:, column].max(), high[:, column].max())
        axis.plot(span, span, "--", color="0.5", linewidth=0.8)
        axis.set(xlabel="truth", ylabel="posterior median and 90 % interval", title=name, aspect="equal")
        axis.locator_params(nbins=5)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=200)


def main() -> None:
    """Fit, infer, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    train, held_out = load(args.seed)
    rng = np.random.default_rng(args.seed)
    truth = held_out[rng.choice(len(held_out), PATIENTS, replace=False)]
    measured = jnp.asarray(truth[:, OBSERVED] * np.exp(NOISE * rng.normal(size=(PATIENTS, 2))))

    learned, report = fd.fit_flow(jr.key(args.seed), train, support=constraints.positive, progress=not args.quiet)
    print(report.summary(), flush=True)
    logs = np.log(train)
    normal = dist.TransformedDistribution(
        dist.MultivariateNormal(jnp.asarray(logs.mean(0)), jnp.asarray(np.cov(logs.T))), dist.transforms.ExpTransform()
    )

    spread = train[:, INFERRED].std(0)  # the scores are in units of a column's standard deviation
    names = [COLUMNS[i] for i in INFERRED]
    table, draws = {}, {}
    for name, prior in (("learned", learned), ("normal", normal)):
        mcmc = infer(prior, measured, args.seed, not args.quiet)
        posterior = az.from_numpyro(mcmc, coords={"column": COLUMNS}, dims={"tumour": ["patient", "column"]})
        if name == "learned":
            print("\nPosterior of the first patient under the learned prior; truth:", truth[0].round(4))
            print(az.summary(posterior.posterior["tumour"].isel(patient=[0])).to_string(), flush=True)
        print(f"{name} prior: {int(np.sum(mcmc.get_extra_fields()['diverging']))} divergent transitions of 500")
        draws[name] = np.asarray(mcmc.get_samples()["tumour"])[..., INFERRED]
        table[name] = scores(draws[name] / spread, truth[:, INFERRED] / spread, names)
    print_scores(table["learned"], table["normal"])
    file = args.output / "quickstart.png"
    picture(file, train, learned, draws["learned"], truth[:, INFERRED])
    print(f"\nPicture: {file}")


if __name__ == "__main__":
    main()
