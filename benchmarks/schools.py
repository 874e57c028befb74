"""Rubin's eight schools (1981): the model whose posterior is the standard example of a neck, in its two forms."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.util import log_density

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centered() -> None:
    """The effects of the schools are sites."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("effect", dist.Normal(theta, ERRORS), obs=EFFECTS)


def non_centered() -> None:
    """Standard normal noise is, of which the effects are made."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.deterministic("theta", mu + tau * numpyro.sample("noise", dist.Normal(0.0, 1.0)))
        numpyro.sample("effect", dist.Normal(theta, ERRORS), obs=EFFECTS)


def by_columns(model: Callable[[], None], effects: str) -> Callable[[], None]:
    """The posterior of one of them as a density of ten columns, which do not say that the last is positive.

    Args:
        model: one of those above.
        effects: its site with a value for each school; the columns are `mu`, these, and `tau`.
    """

    def columns() -> None:
        theta = numpyro.sample("theta", dist.ImproperUniform(constraints.real_vector, (), (10,)))
        positive = theta[-1] > 0.0
        values = {"mu": theta[0], effects: theta[1:-1], "tau": jnp.where(positive, theta[-1], 1.0)}
        with handlers.block():
            value, _ = log_density(model, (), {}, values)
        numpyro.factor("posterior", jnp.where(positive, value, -jnp.inf))

    return columns
