"""A learned prior as a change of variables."""

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import Reparam

from .._typing import Array
from .amortized import AmortizedDensity
from .flow import FlowDensity


class FlowReparam(Reparam):
    r"""Sample the standard-normal base of a learned prior and push it through the flow.

    A strategy for `numpyro.handlers.reparam(config={"theta": FlowReparam()})`. In the noise $z \sim N(0, I)$ the prior
    has one mode whatever it looks like in $\theta$, so a chain crosses between modes; no divergence is needed. The site
    `theta` becomes deterministic, and `theta_base` is what is sampled.
    """

    def __call__(self, name: str, fn: dist.Distribution, obs: Array | None) -> tuple[None, Array]:
        if obs is not None:
            raise ValueError(
                f"FlowReparam expected site `{name}` to be latent; it is observed. An observed event needs its log "
                f"density. Fix: del config[{name!r}]"
            )
        density, expand_shape, event_dim = self._unwrap(fn)
        density = density.flow if isinstance(density, AmortizedDensity) else density
        if not isinstance(density, FlowDensity):
            raise TypeError(
                f"FlowReparam expected site `{name}` to have a FlowDensity; got {type(density).__name__}. "
                f"Fix: del config[{name!r}]"
            )
        base: Any = density.base.expand(expand_shape)
        base = base.to_event(event_dim - density.event_dim)
        noise = numpyro.sample(f"{name}_base", base)
        return None, density.from_base(jnp.asarray(noise))
