"""Amortized posteriors of models, and encoders of contexts."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from .case import Deferred, Groups, cases, untrained_fits
from .material import KEY, PLAIN, RNG, fd

SETS, STEPS = 40, 6
"""Number of contexts, and of rows in each."""
Y = RNG.normal(size=(SETS, STEPS))


def rows(y: Any = None, count: int = STEPS) -> None:
    """A normal mean, with several observations."""
    mu = numpyro.sample("mu", dist.Normal())
    with numpyro.plate("rows", count):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def together(y: Any = None) -> None:
    """The same with one log density for all observations, and with a nuisance."""
    mu = numpyro.sample("mu", dist.Normal())
    tau = numpyro.sample("tau", dist.HalfNormal())
    numpyro.sample("y", dist.Normal(mu, 0.1 + tau).expand([STEPS]).to_event(1), obs=y)


def no_plate(y: Any) -> None:
    """The observations are broadcast, and not simulated."""
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), 1.0), obs=y)


def needy(y: Any) -> None:
    """Data that set the number of rows."""
    rows(y, len(y))


def improper(y: Any = None) -> None:
    """A prior that cannot be drawn from."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def subsampled(y: Any = None) -> None:
    """A part of the data in each call."""
    mu = numpyro.sample("mu", dist.Normal())
    with numpyro.plate("rows", STEPS, subsample_size=2):
        numpyro.sample("y", dist.Normal(mu, 1.0))


def factored(y: Any = None) -> None:
    """A term that cannot be simulated."""
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.factor("penalty", -(mu**2))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def moving(y: Any = None) -> None:
    """A support that depends on another site."""
    high = numpyro.sample("high", dist.Uniform(1.0, 2.0))
    numpyro.sample("mu", dist.Uniform(0.0, high))
    numpyro.sample("y", dist.Normal(high, 1.0), obs=y)


def also(y: Any = None) -> None:
    """Another observed site."""
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.sample("z", dist.Normal(mu, 1.0), obs=0.3)
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def discrete(y: Any = None) -> None:
    """No continuous latent site."""
    kind = numpyro.sample("kind", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(kind, 1.0), obs=y)


def overflowing(y: Any = None) -> None:
    """Simulations that are not finite."""
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.sample("y", dist.Normal(jnp.where(mu > 0.0, jnp.inf, mu), 1.0), obs=y)


def walk(y: Any = None) -> None:
    """A random walk."""
    phi = numpyro.sample("phi", dist.Uniform(-0.9, 0.9))

    def step(last: Any, value: Any) -> tuple[Any, Any]:
        new = numpyro.sample("y", dist.Normal(phi * last, 1.0), obs=value)
        return new, new

    scan(step, 0.0, y, length=STEPS)


def learned(model: Any, **options: Any) -> Deferred:
    """The posterior of a model, with an untrained network."""

    def make() -> Any:
        with untrained_fits():
            return fd.fit_posterior(KEY, model, observed="y", num_simulations=SETS, progress=False, **options)[0]

    return Deferred(make)


BY_ROWS = learned(rows, encoder=fd.encoders.DeepSet(KEY, fewest=2))
NAMED_CONTEXT = {"x": RNG.normal(size=(SETS, 2)), "y": Y}
DATA = RNG.normal(size=(SETS, 1))


def with_gap(number: int) -> np.ndarray:
    """Contexts of which one lacks a row."""
    values = Y.copy()
    values[0, number] = np.nan
    return values


POSTERIORS: Groups = [
    cases(
        "fd.fit_posterior(key, model, observed=observed, num_simulations=40, progress=False)",
        {"key": KEY, "model": rows, "observed": "y", "density": PLAIN},
        {
            "an integer for the key": {"key": 0},
            "a distribution for the model": {"model": dist.Normal()},
            "an observed site that is not there": {"observed": "z"},
            "no observed site": {"observed": ()},
            "an improper prior": {"model": improper},
            "a subsampled plate": {"model": subsampled},
            "a factor": {"model": factored},
            "a support that depends on another site": {"model": moving, "latents": None},
            "another observed site": {"model": also},
            "no continuous latent site": {"model": discrete},
            "data without a plate": {"model": no_plate, "model_args": (np.zeros(5),)},
            "arguments that are not a tuple": {"model_args": np.zeros(STEPS)},
            "a scan with its data": {"model": walk, "model_args": (np.zeros(STEPS),)},
            "simulations that are not finite": {"model": overflowing},
            "a model that needs its data": {"model": needy, "model_args": ()},
            "latent sites that are not there": {"latents": ["tau"]},
            "an encoder for other columns": {"encoder": fd.encoders.DeepSet(KEY, 3)},
            "an encoder for more rows": {"encoder": fd.encoders.DeepSet(KEY, fewest=9)},
            "an encoder for another site": {"encoder": {"z": fd.encoders.DeepSet(KEY)}},
            "an encoder that is a function": {"encoder": np.mean},
        },
    ),
    cases(
        "fd.fit_posterior(key, model, observed='y', num_simulations=num_simulations, progress=False)",
        {"key": KEY, "model": rows, "num_simulations": SETS},
        {"no simulations": {"num_simulations": 0}},
    ),
    cases(
        "fd.fit_flow(key, data, context=context, encoder=encoder, progress=False)",
        {"key": KEY, "data": DATA, "context": Y, "encoder": fd.encoders.DeepSet(KEY)},
        {
            "an encoder without contexts": {"context": None},
            "one encoder for two sites": {"context": NAMED_CONTEXT},
            "no encoder for a site with absent rows": {
                "context": {"x": NAMED_CONTEXT["x"], "y": with_gap(-1)},
                "encoder": {"x": fd.encoders.DeepSet(KEY)},
            },
            "a module that takes no absent rows": {
                "context": with_gap(-1),
                "encoder": eqx.nn.Linear(STEPS, 2, key=KEY),
            },
            "a module for another shape": {"encoder": eqx.nn.Linear(2, 2, key=KEY)},
            "a module that returns no vector": {"encoder": eqx.nn.Lambda(jnp.sum)},
            "absent rows before others": {"context": with_gap(0)},
        },
    ),
    cases(
        "posterior.given(data)",
        {"posterior": BY_ROWS, "data": {"y": np.zeros(STEPS)}},
        {
            "a site that is missing": {"data": {}},
            "an array": {"data": np.zeros(STEPS)},
            "a site too many": {"data": {"y": np.zeros(STEPS), "z": 0.0}},
            "no rows": {"data": {"y": np.zeros(0)}},
            "rows that are not finite": {"data": {"y": np.where(np.arange(STEPS) == 1, np.inf, 0.0)}},
            "another shape, without an encoder": {"posterior": learned(rows), "data": {"y": np.zeros(3)}},
            "values that are not finite, without an encoder": {
                "posterior": learned(rows),
                "data": {"y": np.full(STEPS, np.nan)},
            },
        },
    ),
    cases(
        "posterior.draw(key, data, num_samples=num_samples)",
        {"posterior": BY_ROWS, "key": KEY, "data": {"y": np.zeros(STEPS)}, "num_samples": 10},
        {
            "several data sets": {"data": {"y": np.zeros((3, STEPS))}},
            "no draws": {"num_samples": 0},
            "an integer for the key": {"key": 3},
        },
    ),
    cases(
        "posterior.refine(key, data, num_samples=20, progress=False)",
        {"posterior": BY_ROWS, "key": KEY, "data": {"y": np.zeros(STEPS)}},
        {
            "several data sets": {"data": {"y": np.zeros((3, STEPS))}},
            "more rows than the model": {"data": {"y": np.zeros(2 * STEPS)}},
            "a posterior of some latent sites": {"posterior": learned(together, latents="mu")},
            "absent rows in one log density": {
                "posterior": learned(together, encoder=fd.encoders.DeepSet(KEY, fewest=2)),
                "data": {"y": np.zeros(3)},
            },
        },
    ),
    cases(
        "posterior.check(key, num_simulations=num_simulations, num_samples=num_samples, progress=False)",
        {"posterior": BY_ROWS, "key": KEY, "num_simulations": 25, "num_samples": 10},
        {"too few simulations": {"num_simulations": 3}, "too few draws": {"num_samples": 1}},
    ),
    cases(
        "fd.encoders.DeepSet(key, columns)",
        {"key": KEY, "columns": 1},
        {"an integer for the key": {"key": 0}, "no columns": {"columns": 0}, "no rows": {"fewest": 0}},
    ),
    cases(
        "fd.encoders.Sequence(key, columns)",
        {"key": jr.key(1), "columns": 1},
        {"an integer for the key": {"key": 0}, "half a column": {"columns": 0.5}},
    ),
]
