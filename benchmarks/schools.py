"""Rubin's eight schools (1981): the model whose posterior is the standard example of a neck, in its two forms."""

import numpy as np
import numpyro
import numpyro.distributions as dist

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred() -> None:
    """The effects of the schools are sites."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("effect", dist.Normal(theta, ERRORS), obs=EFFECTS)


def non_centred() -> None:
    """Standard normal noise is, of which the effects are made."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.deterministic("theta", mu + tau * numpyro.sample("noise", dist.Normal(0.0, 1.0)))
        numpyro.sample("effect", dist.Normal(theta, ERRORS), obs=EFFECTS)
