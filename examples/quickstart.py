"""A learned prior in NUTS, from data to posterior.

Half of a table of 442 diabetes patients teaches the joint density of four blood measurements. Each patient of the other half
lacks one of the four, and not all of them the same one. The other three are seen with noise, and NUTS infers the missing one
under the learned prior, for all patients at once. The same is done under a normal and under a Gaussian mixture fitted to the
same half, whose posteriors have a closed form, and all three are scored against the truth.

    python examples/quickstart.py
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_sample
from sklearn.datasets import load_diabetes
from sklearn.mixture import GaussianMixture

import flowdensity as fd

COLUMNS = {"s1": "total cholesterol", "s2": "LDL", "s3": "HDL", "s5": "log triglycerides"}
"""The table's columns, in mg/dL; the last one is a logarithm."""
UNITS = np.array([1.0, 0.2, 1.0, 1.0])
"""Rounding units of the columns, in mg/dL."""
NOISE = np.array([0.3, 0.3, 0.3, 0.005])
"""Standard deviations of the measurements: what rounding alone does to such numbers."""
PATIENTS = 120
DRAWS = 1000
COMPONENTS = range(2, 11)
"""Numbers of components of the mixture, of which the one with the lowest BIC is taken."""


class Panel(NamedTuple):
    """Patients of whom one measurement is missing.

    Attributes:
        truth: all four values, shape `(patients, 4)`.
        measured: the same with noise.
        missing: number of the missing column, shape `(patients,)`.
    """

    truth: np.ndarray
    measured: np.ndarray
    missing: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """Which values are measured, shape `(patients, 4)`."""
        return np.arange(4) != self.missing[:, None]

    def hidden(self, values: np.ndarray) -> np.ndarray:
        """The missing one of the four values of each patient; of shape `(..., patients)` for `(..., patients, 4)`."""
        return values[..., np.arange(len(self.missing)), self.missing]


def load(seed: int) -> tuple[np.ndarray, Panel]:
    """The rows to learn from, shape `(221, 4)`, and patients of the other half."""
    diabetes: Any = load_diabetes(scaled=False)
    table = diabetes.data[:, [diabetes.feature_names.index(name) for name in COLUMNS]]
    recorded = np.column_stack([table[:, :3], np.exp(table[:, 3]).round()])
    spread = fd.dequantize(jr.key(seed), recorded, UNITS)
    table = np.column_stack([spread[:, :3], np.log(spread[:, 3])])
    rng = np.random.default_rng(seed)
    rows = rng.permutation(table)
    half = len(rows) // 2
    truth = rows[half : half + PATIENTS]
    return rows[:half], Panel(truth, truth + NOISE * rng.normal(size=truth.shape), np.arange(PATIENTS) % 4)


def model(prior: dist.Distribution, measured: np.ndarray, seen: np.ndarray) -> None:
    """Four true values of each patient, of which those that were seen are measured with noise."""
    with numpyro.plate("patient", len(measured)):
        panel = numpyro.sample("panel", prior)
        numpyro.sample("measured", dist.Normal(panel, NOISE).mask(seen).to_event(1), obs=measured)


def infer(prior: dist.Distribution, panel: Panel, seed: int, progress: bool) -> MCMC:
    """The posterior of all patients in one run: two chains, vectorized."""
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_sample),
        num_warmup=500,
        num_samples=DRAWS // 2,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=progress,
    )
    mcmc.run(jr.key(seed), prior, jnp.asarray(panel.measured), jnp.asarray(panel.seen))
    return mcmc


def gaussians(rows: np.ndarray, components: int) -> GaussianMixture:
    """A mixture of Gaussians by scikit-learn; one is the normal of the rows' mean and covariance."""
    return GaussianMixture(components, n_init=3, random_state=0).fit(rows)


def exact_draws(fit: GaussianMixture, panel: Panel, rng: np.random.Generator) -> np.ndarray:
    """Posterior draws under a mixture in closed form, shape `(draws, patients, 4)`: of each patient another mixture."""
    draws = np.empty((DRAWS, *panel.truth.shape))
    components = [np.asarray(each) for each in (fit.weights_, fit.means_, fit.covariances_)]
    for number, (measured, seen) in enumerate(zip(panel.measured, panel.seen, strict=True)):
        logits, means, covariances = [], [], []
        for weight, mean, covariance in zip(*components, strict=True):
            known = covariance[np.ix_(seen, seen)] + np.diag(np.square(NOISE[seen]))
            gain, gap = np.linalg.solve(known, covariance[seen]).T, measured[seen] - mean[seen]
            means.append(mean + gain @ gap)
            covariances.append(covariance - gain @ covariance[seen])
            logits.append(np.log(weight) - 0.5 * (gap @ np.linalg.solve(known, gap) + np.linalg.slogdet(known)[1]))
        weights = np.exp(logits - np.logaddexp.reduce(logits))
        counts = rng.multinomial(DRAWS, weights / weights.sum())
        parts = [rng.multivariate_normal(*each) for each in zip(means, covariances, counts, strict=True)]
        draws[:, number] = rng.permutation(np.concatenate(parts))
    return draws


class Scores(NamedTuple):
    """How good posteriors of the missing values are, one number for each patient, in standard deviations of the column.

    Attributes:
        crps: continuous ranked probability score; smaller is better.
        width: of the 90 % interval.
        covered: whether the truth is in that interval.
    """

    crps: np.ndarray
    width: np.ndarray
    covered: np.ndarray


def score(draws: np.ndarray, truth: np.ndarray) -> Scores:
    """Score draws of the missing values, shape `(draws, patients)`, against the truth, shape `(patients,)`."""
    ordered = np.sort(draws, axis=0)
    rank = (np.arange(len(draws)) + 0.5) / len(draws) - 0.5
    # The mean distance between two draws is twice this (Zamo and Naveau 2018, doi 10.1007/s11004-017-9709-7).
    apart = 2.0 * np.mean(rank[:, None] * ordered, axis=0)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return Scores(np.abs(draws - truth).mean(axis=0) - apart, high - low, (low <= truth) & (truth <= high))


def print_scores(scores: dict[str, Scores]) -> None:
    """Means over patients, and how much worse than the learned prior another one is, with its paired standard error."""
    print(f"\n{'prior':<22}{'CRPS':>8}{'minus learned':>18}{'90 % width':>15}{'coverage':>15}")
    for name, (crps, width, covered) in scores.items():
        worse = crps - scores["learned"].crps
        error = worse.std(ddof=1) / np.sqrt(len(worse))
        against = f"{worse.mean():+.3f} +- {error:.3f}" if name != "learned" else ""
        print(f"{name:<22}{crps.mean():>8.3f}{against:>18}{width.mean():>15.2f}{covered.mean():>15.0%}")
    print("means over patients; CRPS and width in standard deviations of each column")


def picture(
    file: Path, rows: np.ndarray, drawn: dict[str, np.ndarray], panel: Panel, draws: dict[str, np.ndarray]
) -> None:
    """Draw what was learned, and the posteriors of what was missing.

    Args:
        file: where to save it.
        rows: what was learned from, shape `(rows, 4)`.
        drawn: samples of two priors by name, shape `(samples, 4)`.
        panel: the patients.
        draws: posterior draws of the missing values under these priors, shape `(draws, patients)`.
    """
    figure, axes = plt.subplots(2, 3, figsize=(8.0, 4.8), layout="constrained")
    left, *others, last = axes.flat
    last.axis("off")
    colors = dict(zip(drawn, ("0.65", "C0"), strict=True))

    def rest(values: np.ndarray) -> np.ndarray:
        return values[:, 0] - values[:, 1] - values[:, 2]

    for name, values in drawn.items():
        left.plot(values[:, 3], rest(values), ".", color=colors[name], markersize=3, alpha=0.6, label=name, zorder=1)
    left.plot(rows[:, 3], rest(rows), ".", color="black", markersize=2.5, label="data")
    ends = np.array([rows[:, 3].min(), rows[:, 3].max()])
    left.set(
        xlim=ends + np.array([-0.3, 0.3]),
        xlabel="log triglycerides",
        ylabel="total cholesterol - LDL - HDL",
        title="samples",
    )
    figure.legend(*left.get_legend_handles_labels(), loc=(0.78, 0.2), frameon=False, markerscale=3, title="prior")
    for column, (axis, label) in enumerate(zip(others, COLUMNS.values(), strict=True)):
        of_it = panel.missing == column
        truth = panel.truth[of_it, column]
        for name, values in draws.items():
            low, middle, high = np.quantile(values[:, of_it] - truth, [0.05, 0.5, 0.95], axis=0)
            bars = np.stack([middle - low, high - middle])
            axis.errorbar(truth, middle, bars, fmt="o", markersize=2.5, linewidth=1.0, color=colors[name])
        axis.axhline(0.0, color="black", linewidth=0.6, zorder=0)
        axis.set(xlabel=f"true {label}", ylabel="posterior - truth", title=f"{label} missing")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=200)


def main() -> None:
    """Learn, infer, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    rows, panel = load(args.seed)
    fit_key, distill_key, draw_key = jr.split(jr.key(args.seed), 3)

    density, report = fd.fit_flow(fit_key, rows, progress=not args.quiet)
    print(report.summary(), flush=True)
    prior, report = fd.distill(distill_key, density, progress=not args.quiet)
    print(report.summary(), flush=True)

    mcmc = infer(prior, panel, args.seed, not args.quiet)
    posterior = az.from_numpyro(
        mcmc, coords={"column": list(COLUMNS.values())}, dims={"panel": ["patient", "column"]}, log_likelihood=False
    )
    name = list(COLUMNS.values())[panel.missing[0]]
    print(f"\nPosterior of the first patient, whose {name} is missing; truth: {panel.truth[0].round(2)}")
    print(az.summary(posterior, var_names=["panel"], coords={"patient": [0]}).to_string(), flush=True)
    print(f"{int(np.sum(mcmc.get_extra_fields()['diverging']))} divergent transitions of {DRAWS}")

    rng = np.random.default_rng(args.seed)
    normal = gaussians(rows, 1)
    mixture = min((gaussians(rows, number) for number in COMPONENTS), key=lambda fit: fit.bic(rows))
    draws = {
        "learned": panel.hidden(np.asarray(mcmc.get_samples()["panel"])),
        "normal": panel.hidden(exact_draws(normal, panel, rng)),
        f"mixture of {mixture.n_components}": panel.hidden(exact_draws(mixture, panel, rng)),
    }
    deviation = rows.std(axis=0)[panel.missing]  # scores are in units of a column's standard deviation
    truth = panel.hidden(panel.truth)
    print_scores({name: score(values / deviation, truth / deviation) for name, values in draws.items()})

    drawn = {"normal": normal.sample(1000)[0], "learned": np.asarray(density.sample(draw_key, (1000,)))}
    file = args.output / "quickstart.png"
    picture(file, rows, drawn, panel, {name: draws[name] for name in drawn})
    print(f"\nPicture: {file}")


if __name__ == "__main__":
    main()
