"""What the diagnostics print of one good density and of four bad ones, and how a posterior is repaired.

    python benchmarks/trust.py            # about twelve minutes on two cores; resumes
    python benchmarks/trust.py --cached   # only the files, from the cells that are there

The data are two moons. Writes docs/trust-*.txt, which docs/trust.md includes, and docs/images/trust-good.png and trust-head.png.
"""

import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import jax
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import make_moons
from tables import cells_of, provenance

import flowdensity as fd

DOCS = Path(__file__).parents[1] / "docs"
OBSERVED, NOISE = np.array([1.5, -0.2]), 0.3
FAR = np.array([1.5, 2.5])
"""An observation that none of the data come near."""
CHAINS, DRAWS = 4, 500
FEW, FEWER = 128, 32
"""Labels of an amortization that weights repair, and of one that they do not."""


def rows(seed: int, count: int) -> np.ndarray:
    """Two moons."""
    return np.asarray(make_moons(count, noise=0.1, random_state=seed)[0])


@functools.cache
def good() -> fd.FlowDensity:
    """A sound fit, by defaults."""
    learned = fd.objectives.LangevinStein()
    return fd.fit_flow(jr.key(0), rows(0, 10_000), divergence=learned, progress=False)[0]


@functools.cache
def short_head() -> fd.FlowDensity:
    """The same flow, with a divergence that was distilled for next to no time."""
    divergence, _ = fd.fit_divergence(
        jr.key(2), good().model, rows(0, 10_000), training=fd.Training(steps=60), progress=False
    )
    return good().with_divergence(divergence)


def coarse() -> fd.FlowDensity:
    """The same flow with two steps of the solver."""
    return good().with_solver(fd.FixedStep(steps=2))


@functools.cache
def cheap(labels: int) -> fd.AmortizedDensity:
    """The same flow, amortized with few labels."""
    fast, _ = fd.distill(jr.key(3), good(), labels=labels, width=64, training=fd.Training(steps=200), progress=False)
    return fast


def diagnosed(density: fd.FlowDensity | fd.AmortizedDensity, picture: str = "") -> dict:
    """What `diagnose` says of it, with rows that no fit has seen, and a picture of the errors that it found."""
    diagnosis = fd.diagnose(jr.key(4), density, rows(1, 2000), progress=False)
    if picture:
        axes = fd.plots.plot_errors(diagnosis)
        axes[0].figure.savefig(DOCS / "images" / picture, dpi=150)
    return {"text": diagnosis.summary()}


def model(prior: dist.Distribution, y: np.ndarray) -> None:
    """One point, observed with noise."""
    theta = numpyro.sample("theta", prior)
    numpyro.sample("y", dist.Normal(theta, NOISE).to_event(1), obs=y)


def sampled(kernel: Any, *args: Any, **options: Any) -> tuple[Any, MCMC]:
    """A posterior in arviz's form, and the run."""
    mcmc = MCMC(
        kernel, num_warmup=500, num_samples=DRAWS, num_chains=CHAINS, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jr.key(5), *args, **options)
    return az.from_numpyro(mcmc), mcmc


def table(posterior: Any) -> str:
    """arviz's summary."""
    return az.summary(posterior, var_names=["theta"]).to_string()


def reweighted(prior: dist.Distribution) -> tuple[Any, fd.results.Reweighted]:
    """A posterior under an amortized density, and the same weighted to the exact one."""
    posterior, _ = sampled(NUTS(model), prior, OBSERVED)
    with warnings.catch_warnings():
        # The warning is in the summary.
        warnings.simplefilter("ignore")
        weighted = fd.reweight(
            jr.key(6), posterior, model, {"theta": good()}, model_args=(prior, OBSERVED), progress=False
        )
    return posterior, weighted


def repaired() -> dict:
    """A posterior under a cheap density, weighted to the exact one, beside NUTS with that."""
    posterior, weighted = reweighted(cheap(FEW))
    exact, _ = sampled(NUTS(model), good().with_divergence(fd.ExactDivergence()), OBSERVED)
    return {
        "text": f"{weighted.summary()}\n\nas sampled\n{table(posterior)}\n\nreweighted\n{table(weighted.resample())}\n\n"
        f"NUTS with the exact density\n{table(exact)}"
    }


def delayed() -> dict:
    """A posterior under a density too cheap for weights, and by delayed acceptance."""
    posterior, weighted = reweighted(cheap(FEWER))
    kernel = fd.DelayedAcceptance(NUTS(model), exact={"theta": good()})
    accepted, mcmc = sampled(kernel, cheap(FEWER), OBSERVED)
    return {
        "text": f"{weighted.summary()}\n\nas sampled\n{table(posterior)}\n\nby delayed acceptance, "
        f"{np.mean(mcmc.get_extra_fields()['accept']):.0%} of the proposals accepted\n{table(accepted)}"
    }


def supported() -> dict:
    """A posterior where the data are, and one where they are not."""
    texts = []
    for y in (OBSERVED, FAR):
        posterior, _ = sampled(NUTS(model), good(), y)
        with warnings.catch_warnings():
            # The warning is the summary once more.
            warnings.simplefilter("ignore")
            texts.append(f"y = {y}: {fd.check_support(posterior, good(), data=rows(1, 2000)).summary()}")
    return {"text": "\n\n".join(texts)}


def kept() -> dict:
    """A density in a file and back."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "moons.flow"
        fd.save(file, good())
        again = fd.load(file)
        points = rows(1, 2000)
        same = bool(jax.numpy.array_equal(good().log_prob(points), again.log_prob(points)))
        return {
            "text": f"{file.stat().st_size / 1024:.0f} KiB; the same log densities of 2,000 points, bit by bit: {same}"
        }


def main() -> None:
    """Compute the cells that are missing and write the files."""
    jobs: dict[str, Callable[[], dict]] = {
        "good": lambda: diagnosed(good(), "trust-good.png"),
        "head": lambda: diagnosed(short_head(), "trust-head.png"),
        "solver": lambda: diagnosed(coarse()),
        "amortized": lambda: diagnosed(cheap(FEW)),
        "reweight": repaired,
        "delayed": delayed,
        "support": supported,
        "saved": kept,
    }
    cells = cells_of(__doc__, "trust", jobs)
    for name, cell in cells.items():
        (DOCS / f"trust-{name}.txt").write_text(f"{cell['text']}\n")
    (DOCS / "trust-made.txt").write_text(f"{provenance('python benchmarks/trust.py', cells.values())}\n")


if __name__ == "__main__":
    main()
