"""Reparametrization of a learned prior by its flow."""

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.handlers import reparam
from numpyro.infer.reparam import Reparam

from .._numpyro import unwrapped
from .._typing import Array
from .handler_values import HandlerValue, Override, Query, handler_value, innermost, overriding
from .learned import AbstractLearnedDensity


def base_name(name: str) -> str:
    """Name of the noise site for a reparametrized site."""
    return f"{name}_base"


class FlowReparam(Reparam):
    r"""Sample the standard-normal base of a learned prior and push it through the flow.

    Use it as a strategy in `numpyro.handlers.reparam(config={"theta": FlowReparam()})`. In the noise $z \sim N(0, I)$ the prior
    has a single mode for any shape in $\theta$, so a chain can cross between modes. No divergence is needed. The site `theta`
    becomes deterministic, and `theta_base` is sampled instead.

    If a handler or an initialization strategy provides a value of `theta`, it is mapped to the noise. An observed `theta` raises
    an error.

    Examples:
        >>> through_noise = reparam(model, config={"theta": fd.FlowReparam()})
        >>> mcmc = MCMC(NUTS(through_noise), num_warmup=500, num_samples=1000)
        >>> mcmc.run(key, y=observed)
        >>> mcmc.get_samples()["theta"].mean(axis=0)
    """

    def __call__(self, name: str, fn: dist.Distribution, obs: Array | None) -> tuple[Any, Any]:
        if isinstance(unwrapped(fn), Query):
            return fn, obs
        density, expand_shape, event_dim = self._unwrap(fn)
        if not isinstance(density, AbstractLearnedDensity):
            raise TypeError(
                f"FlowReparam expected site `{name}` to have a FlowDensity or an AmortizedDensity; got {type(density).__name__}. "
                f"Fix: del config[{name!r}]"
            )
        base: Any = density.base.expand(expand_shape)
        base = base.to_event(event_dim - density.event_dim)
        value = self._value_of(name, fn, base, obs)
        if value is None:
            return None, density.from_base(jnp.asarray(numpyro.sample(base_name(name), base)))
        if value.intervened:
            numpyro.sample(base_name(name), base)
        else:
            _sample_noise_of(name, base, density, value)
        return None, jnp.broadcast_to(value.value, fn.shape())

    def _value_of(
        self, name: str, fn: dist.Distribution, base: dist.Distribution, obs: Array | None
    ) -> HandlerValue | None:
        """The value that handlers give to the site; None if they give none, or if they give its noise."""
        if obs is None and handler_value(base_name(name), Query(constraints.real, base.batch_shape, base.event_shape)):
            return None
        support: Any = fn.support
        # Scopes inside the handler that contains this strategy have already changed the name.
        outside = None if obs is not None else innermost(lambda handler: self._is_held_by(handler, name))
        value = handler_value(name, Query(support, fn.batch_shape, fn.event_shape), outside)
        if (obs is not None and value is None) or (value is not None and value.observed):
            raise ValueError(
                f"FlowReparam expected site `{name}` to be latent; it is observed. An observed event needs its log "
                f"density. Fix: del config[{name!r}]"
            )
        return None if value is None or value.problem else value

    def _is_held_by(self, handler: Any, name: str) -> bool:
        if not isinstance(handler, reparam):
            return False
        return callable(handler.config) or (handler.config or {}).get(name) is self


def _sample_noise_of(name: str, base: dist.Distribution, density: AbstractLearnedDensity, value: HandlerValue) -> None:
    called = base_name(name)
    handler = Override(lambda other: other.endswith(called), lambda _: density.to_base(value.value), observed=False)
    with overriding(handler, value.handler):
        numpyro.sample(called, base)
    if not handler.used:
        raise ValueError(
            f"FlowReparam expected site `{called}` to be sampled as it is, since a value of `{name}` is given; another handler "
            f"samples something else in its place. Fix: del config[{called!r}]"
        )
