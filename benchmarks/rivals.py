r"""The methods of the benchmark of held-out log scores, each with the recipe that its documentation gives.

- **gaussian**: one full Gaussian, with scikit-learn's Ledoit-Wolf covariance.
- **kde**: scikit-learn's `KernelDensity` with a Gaussian kernel, its bandwidth by five-fold cross-validation over 26 values. With
  more than 5,000 rows by 5,000 of them, and then less by $(5000/n)^{1/(4 + D)}$ for all, as in Scott's rule.
- **vine**: pyvinecopulib's `Vinedist`, kernel densities for the margins and the pair copulas and structure of its defaults.
- **mixture**: scikit-learn's `GaussianMixture` with full covariances, of 1 to 20 components the number of least BIC. A fit with a
  component of fewer rows than two for each column is passed over: its likelihood has no bound.
- **flowjax-coupling, flowjax-maf**: `coupling_flow` and `masked_autoregressive_flow` with `RationalQuadraticSpline(knots=8,
  interval=4)`, and `fit_to_data` with its defaults: 100 epochs at most, and a patience of 5.
- **zuko-nsf, zuko-cnf**: `NSF` with three transforms and `CNF`, both with two hidden layers of 64, Adam at 1e-3 and batches of
  64, as in its tutorials. It has no fit of its own: a tenth of the rows validates, and the best of at most 500 epochs is kept,
  with a patience of 20. The CNF solves an ODE with its exact trace in every step, which takes a third of a second or more on one
  core: it is left out above 2,000 rows or 15 columns.
- **flow**: `fit_flow` with its defaults.

Every method but `flow` is fitted to columns that are standardized with the training rows; the log determinant is added to its
log densities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from accuracy import log_prob
from columns import Columns
from scipy.stats import multivariate_normal

import flowdensity as fd

CHUNK = 1_000
BANDWIDTHS = np.logspace(-2.0, 0.5, 26)
COMPONENTS = range(1, 21)
TUNED_ON = 5_000
EPOCHS, PATIENCE, BATCH, VALIDATION = 500, 20, 64, 0.1
CNF_DIM, CNF_ROWS = 15, 2_000

LogProb = Callable[[np.ndarray], np.ndarray]
"""Rows of shape `(rows, dim)` in the table's units to nats, shape `(rows,)`."""


@dataclass(frozen=True)
class Fitted:
    """A density that was learned.

    Attributes:
        log_prob: log density of rows in the table's units.
        sample: so many draws.
        density: the same as a numpyro distribution, of this package.
    """

    log_prob: LogProb
    sample: Callable[[int], np.ndarray]
    density: fd.FlowDensity | None = None


class Method(NamedTuple):
    """How a density is learned from a seed and rows, and from which package."""

    fit: Callable[[int, np.ndarray], Fitted]
    package: str
    largest_dim: float = np.inf
    most_rows: float = np.inf

    def suits(self, table: Columns) -> bool:
        """Whether it is not too slow for a table."""
        return table.dim <= self.largest_dim and table.rows <= self.most_rows

    @property
    def made_with(self) -> str:
        """The package and its version."""
        return f"{self.package} {version(self.package)}"


class Units(NamedTuple):
    """The mean and standard deviation of every column."""

    mean: np.ndarray
    sd: np.ndarray

    def white(self, rows: np.ndarray) -> np.ndarray:
        """Standardized rows."""
        return (rows - self.mean) / self.sd

    def fitted(self, log_prob: LogProb, sample: Callable[[int], np.ndarray]) -> Fitted:
        """A density of standardized rows as one of the rows."""

        def in_units(rows: np.ndarray) -> np.ndarray:
            return np.asarray(log_prob(self.white(rows)), np.float64) - np.log(self.sd).sum()

        return Fitted(in_units, lambda count: self.mean + self.sd * np.asarray(sample(count), np.float64))


def standardized(train: np.ndarray) -> tuple[Units, np.ndarray]:
    """Units of the rows, and the rows in them."""
    units = Units(train.mean(axis=0), train.std(axis=0))
    return units, units.white(train)


def gaussian(seed: int, train: np.ndarray) -> Fitted:
    """One Gaussian with a Ledoit-Wolf covariance."""
    from sklearn.covariance import LedoitWolf

    units, rows = standardized(train)
    estimate = LedoitWolf().fit(rows)
    density = multivariate_normal(estimate.location_, estimate.covariance_, seed=seed)
    return units.fitted(lambda x: np.atleast_1d(density.logpdf(x)), lambda n: np.asarray(density.rvs(n)))


def kde(seed: int, train: np.ndarray) -> Fitted:
    """A Gaussian kernel with a cross-validated bandwidth."""
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.neighbors import KernelDensity

    units, rows = standardized(train)
    folds = KFold(5, shuffle=True, random_state=seed)
    search = GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=folds, refit=False).fit(rows[:TUNED_ON])
    shrinkage = min(1.0, TUNED_ON / len(rows)) ** (1.0 / (4 + rows.shape[1]))
    density = KernelDensity(bandwidth=shrinkage * search.best_params_["bandwidth"]).fit(rows)
    return units.fitted(density.score_samples, lambda n: density.sample(n, random_state=seed))


def mixture(seed: int, train: np.ndarray) -> Fitted:
    """A mixture of Gaussians with the number of components of least BIC."""
    from sklearn.mixture import GaussianMixture

    units, rows = standardized(train)
    best: tuple[float, Any] = (np.inf, None)
    for number in COMPONENTS:
        model = GaussianMixture(number, random_state=seed).fit(rows)
        if number > 1 and model.weights_.min() * len(rows) < 2 * rows.shape[1]:
            continue
        best = min(best, (model.bic(rows), model), key=lambda pair: pair[0])
    density = best[1]
    return units.fitted(density.score_samples, lambda n: density.sample(n)[0])


def flowjax(kind: str) -> Callable[[int, np.ndarray], Fitted]:
    """A flow of flowjax by the name of its constructor."""

    def fit(seed: int, train: np.ndarray) -> Fitted:
        from flowjax import flows
        from flowjax.bijections import RationalQuadraticSpline
        from flowjax.distributions import Normal
        from flowjax.train import fit_to_data

        units, rows = standardized(train)
        flow_key, fit_key, sample_key = jr.split(jr.key(seed), 3)
        flow = getattr(flows, kind)(
            flow_key,
            base_dist=Normal(jnp.zeros(rows.shape[1])),
            transformer=RationalQuadraticSpline(knots=8, interval=4),
        )
        flow, _ = fit_to_data(fit_key, flow, jnp.asarray(rows, float), show_progress=False)
        log_prob = jax.jit(lambda x: flow.log_prob(x))
        sample = jax.jit(lambda n: flow.sample(sample_key, (n,)), static_argnums=0)
        return units.fitted(lambda x: np.asarray(log_prob(jnp.asarray(x, float))), lambda n: np.asarray(sample(n)))

    return fit


def vine(seed: int, train: np.ndarray) -> Fitted:
    """A vine copula with kernel densities for its margins."""
    import pyvinecopulib

    units, rows = standardized(train)
    density = pyvinecopulib.Vinedist.from_data(rows)
    return units.fitted(density.logpdf, lambda n: density.sample(n, seeds=[seed + 1]))


def zuko(kind: str, options: dict[str, Any]) -> Callable[[int, np.ndarray], Fitted]:
    """A flow of zuko by the name of its class."""

    def fit(seed: int, train: np.ndarray) -> Fitted:
        import torch
        from zuko import flows

        torch.manual_seed(seed)
        units, white = standardized(train)
        rows = torch.as_tensor(white, dtype=torch.float32)[torch.randperm(len(white))]
        held_out = round(VALIDATION * len(rows))
        validation, rows = rows[:held_out], rows[held_out:]
        flow = getattr(flows, kind)(rows.shape[1], hidden_features=(64, 64), **options)
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)

        def log_prob(x: np.ndarray | torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                chunks = torch.as_tensor(x, dtype=torch.float32).split(CHUNK)
                return torch.cat([flow().log_prob(chunk) for chunk in chunks])

        def sample(count: int) -> np.ndarray:
            with torch.no_grad():
                return flow().sample((count,)).numpy()

        best, since, kept = -np.inf, 0, flow.state_dict()
        for _ in range(EPOCHS):
            for batch in rows[torch.randperm(len(rows))].split(BATCH):
                loss = -flow().log_prob(batch).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            score = float(log_prob(validation).mean())
            if score > best:
                best, since, kept = score, 0, {name: value.clone() for name, value in flow.state_dict().items()}
            else:
                since += 1
                if since >= PATIENCE:
                    break
        flow.load_state_dict(kept)
        return units.fitted(lambda x: log_prob(x).numpy(), sample)

    return fit


def flow(seed: int, train: np.ndarray) -> Fitted:
    """A flow of this package with its defaults."""
    fit_key, sample_key = jr.split(jr.key(seed))
    density, _ = fd.fit_flow(fit_key, train, progress=False)

    return Fitted(
        partial(log_prob, density),
        lambda count: np.asarray(density.sample(sample_key, (count,)), np.float64),
        density,
    )


METHODS: dict[str, Method] = {
    "flow": Method(flow, "flowdensity"),
    "gaussian": Method(gaussian, "scikit-learn"),
    "kde": Method(kde, "scikit-learn"),
    "mixture": Method(mixture, "scikit-learn"),
    "vine": Method(vine, "pyvinecopulib"),
    "flowjax-coupling": Method(flowjax("coupling_flow"), "flowjax"),
    "flowjax-maf": Method(flowjax("masked_autoregressive_flow"), "flowjax"),
    "zuko-nsf": Method(zuko("NSF", {"transforms": 3}), "zuko"),
    "zuko-cnf": Method(zuko("CNF", {}), "zuko", largest_dim=CNF_DIM, most_rows=CNF_ROWS),
}
OURS = "flow"
