"""Chains of NUTS that benchmarks run alike."""

from collections.abc import Callable
from typing import Any

import jax.random as jr
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_uniform

CHAINS = 4


def run_nuts(
    model: Callable[[], Any], *, warmup: int, samples: int, start: Callable[..., Any] = init_to_uniform
) -> tuple[np.ndarray, dict]:
    """Four vectorized chains of `theta`, shape `(4, samples, dim)`, and what is said of every run."""
    mcmc = MCMC(
        NUTS(model, init_strategy=start),
        num_warmup=warmup,
        num_samples=samples,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), extra_fields=("diverging", "num_steps"))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["theta"], np.float64)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    columns = [draws[..., i] for i in range(draws.shape[-1])]
    return draws, {
        "r_hat": float(max(split_gelman_rubin(column) for column in columns)),
        "ess": float(min(effective_sample_size(column) for column in columns)),
        "divergences": int(np.sum(fields["diverging"])),
        "leapfrogs": float(np.mean(fields["num_steps"])),
        # A draw takes as many gradients as the chain with the most of them: the others wait.
        "gradients": float(np.sum(np.max(fields["num_steps"], axis=0))),
    }
