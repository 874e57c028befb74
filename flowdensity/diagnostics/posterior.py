"""Posteriors in arviz's form: their variables, the events of a density among them, and statistics of the draws."""

from typing import Any

import numpy as np

from .._arrays import has
from .._typing import Bool
from ..data.draws import CHAINS, dataset_of, draw_dims
from ..distributions.learned import AbstractLearnedDensity

POSTERIOR_LINE = "posterior = arviz.from_numpyro(mcmc)"
"""Code that converts a numpyro run to a posterior in arviz's form, for fixes."""

# arviz is imported where it is used, since its import takes longer than that of the rest of the package.


def draws(caller: str, posterior: Any) -> dict[str, np.ndarray]:
    """Return every variable of a posterior, shape `(chain, draw, *shape)`.

    Args:
        caller: name of the public function for errors.
        posterior: arviz's `InferenceData` or `DataTree`, or the `Dataset` of its posterior group.

    Raises:
        TypeError: if it is none of these.
        ValueError: if a variable does not have the dimensions chain and draw.
    """
    dataset, source = _dataset(caller, posterior)
    for name, array in dataset.data_vars.items():
        if draw_dims(array) != CHAINS:
            raise ValueError(
                f"{caller} expected variables of `posterior` with the dimensions chain and draw; got {array.dims} for {name!r}. "
                f"Fix: posterior = {_with_chains(dataset, str(name), source)}"
            )
    return {str(name): array.transpose(*CHAINS, ...).to_numpy() for name, array in dataset.data_vars.items()}


def events_of(
    caller: str, variables: dict[str, np.ndarray], flow: AbstractLearnedDensity, site: str | None
) -> np.ndarray:
    """Return the events of a density from a posterior's variables, shape `(chain, draw, *batch, *event_shape)`.

    Args:
        caller: name of the public function for errors.
        variables: variables as returned by `draws`.
        flow: the density.
        site: variable with the events. None takes the named sites of the density, or the only variable with the event shape.

    Raises:
        ValueError: if there is no such variable or more than one, or a draw is not finite.
    """
    sites = flow.sites
    if site is None and sites is not None and set(sites.names) <= set(variables):
        return _finite(caller, np.asarray(flow.pack({name: variables[name] for name in sites.names}), np.float64))
    shape = flow.event_shape
    fitting = [name for name, array in variables.items() if array.shape[max(2, array.ndim - len(shape)) :] == shape]
    if site is None and len(fitting) == 1:
        site = fitting[0]
    if site not in fitting:
        raise ValueError(
            f"{caller} expected `site` as the variable of the posterior with events of shape {shape}; got {site!r}, but the "
            f"variables of that shape are {fitting}. Fix: {f'site = {fitting[0]!r}' if fitting else POSTERIOR_LINE}"
        )
    return _finite(caller, np.asarray(variables[site], np.float64))


def effective_sample_size(values: np.ndarray) -> np.ndarray:
    """Return arviz's rank-normalized effective sample size of draws with shape `(chain, draw, *shape)`, for each of `shape`."""
    import arviz

    return np.asarray(arviz.ess({"x": values}, method="bulk")["x"])


def rhat(values: np.ndarray) -> np.ndarray:
    """Return arviz's rank-normalized R-hat of draws with shape `(chain, draw, *shape)`, for each of `shape`."""
    import arviz

    found: Any = arviz.rhat({"x": values}, method="rank")
    return np.asarray(found["x"])


def standard_errors(values: np.ndarray) -> np.ndarray:
    """Return arviz's Monte Carlo standard error of the mean of draws with shape `(chain, draw, *shape)`, for each of `shape`."""
    import arviz

    return np.asarray(arviz.mcse({"x": values}, method="mean")["x"])


def pareto_smoothed(log_ratios: np.ndarray, efficiency: float) -> tuple[np.ndarray, float]:
    """Compute weights by Pareto-smoothed importance sampling, with arviz's code.

    Reference: Vehtari et al. 2024, "Pareto smoothed importance sampling", JMLR 25.

    Args:
        log_ratios: log ratio of each draw, in nats.
        efficiency: effective sample size of the draws, divided by their number.

    Returns:
        Log weights whose exponentials sum to 1, and the Pareto shape k of their tail.
    """
    import arviz

    # Repeated draws give a tail of ties. Its fitted shape can be so small that arviz overflows, and the weight is then zero.
    with np.errstate(over="ignore"):
        if hasattr(arviz, "psislw"):
            weights, shape = arviz.psislw(log_ratios, reff=efficiency)
            return np.asarray(weights), float(shape)
        from arviz_stats.base import array_stats  # type: ignore[import-not-found]  # what arviz 1 is made of

        # arviz_stats takes log likelihoods, whose reciprocals are the ratios of leave-one-out cross-validation.
        weights, shape = array_stats.psislw(-log_ratios, r_eff=efficiency)
        return weights, float(shape)


def _finite(caller: str, events: np.ndarray) -> np.ndarray:
    bad = np.any(~np.isfinite(events.reshape(*events.shape[:2], -1)), axis=2)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{caller} expected `posterior` with finite draws; got {int(bad.sum())} of {bad.size} that are not finite; the "
            f"first is draw {first[1]} of chain {first[0]}. The sampler failed there. Fix: {finite_chains(bad)}"
        )
    return events


def finite_chains(bad: Bool[np.ndarray, "chain draw"]) -> str:
    """Code for a fix: keep the chains without a bad draw or, if there are none, sample again."""
    good = np.flatnonzero(~bad.any(axis=1)).tolist()
    return f"posterior = posterior.isel(chain={good})" if good else f"mcmc.run(jax.random.key(1)); {POSTERIOR_LINE}"


def _with_chains(dataset: Any, name: str, source: str) -> str:
    """Code that gives a variable chain and draw dimensions or, if other variables have them, drops it."""
    array = dataset[name]
    if set(CHAINS) <= set(array.coords) and array.coords["draw"].dims == ("sample",):
        return f"{source}.unstack('sample')"
    if not array.dims or any(draw_dims(other) == CHAINS for other in dataset.data_vars.values()):
        return f"{source}.drop_vars({name!r})"
    rows = next(iter(draw_dims(array) or array.dims))
    return f"{source}.rename({{{rows!r}: 'draw'}}).expand_dims('chain')".replace(".rename({'draw': 'draw'})", "")


def _dataset(caller: str, posterior: Any) -> tuple[Any, str]:
    """Return the posterior group, and the code for it."""
    group = dataset_of(caller, "posterior", posterior)
    if group is None:
        line = "posterior = arviz.from_numpyro(posterior)" if has(posterior, "get_samples") else POSTERIOR_LINE
        raise TypeError(f"{caller} expected `posterior` in arviz's form; got {type(posterior).__name__}. Fix: {line}")
    return group
