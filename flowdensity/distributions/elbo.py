"""Evidence lower bound with a gradient along the path of the samples only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer.elbo import ELBO
from numpyro.infer.util import log_density

from .._checks import check_count
from .._numpyro import innermost
from .._typing import Key


class PathGradientELBO(ELBO):
    r"""`Trace_ELBO` with the gradient of Roeder et al. (2017, arXiv 1703.09194), "sticking the landing".

    Its value is the evidence lower bound. Its gradient leaves out the gradient of $\log q_\lambda(z)$ at a fixed $z$, whose mean
    is zero. The gradient therefore has no variance for a perfect guide. To compute it, the log density of the guide is evaluated
    a second time at its sample, which takes a second solve for a flow. Every latent site must be reparametrized.

    Args:
        num_particles: number of samples in each estimate.
        vectorize_particles: as in numpyro's `ELBO`.

    Raises:
        ValueError: if `num_particles` is not an integer of at least 1.
        NotImplementedError: in training, if the model or the guide has mutable state.

    Examples:
        >>> svi = SVI(model, fd.AutoFlow(model), optax.adam(1e-3), fd.PathGradientELBO(num_particles=8))
        >>> result = svi.run(key, 1000, y=observed)
        >>> result.losses[-1]  # minus the evidence lower bound, in nats
    """

    def __init__(self, num_particles: int = 1, vectorize_particles: bool | Callable[..., Any] = True):
        num_particles = check_count("PathGradientELBO", "num_particles", num_particles, fix=1)
        super().__init__(num_particles, vectorize_particles)

    def loss_with_mutable_state(
        self,
        rng_key: Key,
        param_map: dict[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def particle(key: Key) -> Any:
            model_key, draw_key, density_key = jr.split(key, 3)
            drawn = trace(seed(substitute(guide, data=param_map), draw_key)).get_trace(*args, **kwargs)
            # Plates are included to keep their rows. A Delta is left out: it follows from other sites, and its recomputed value
            # may differ in the last bit from a fixed one.
            values = {
                name: site["value"]
                for name, site in drawn.items()
                if site["type"] == "plate"
                or (site["type"] == "sample" and not isinstance(innermost(site["fn"]), dist.Delta))
            }
            fixed = jax.lax.stop_gradient(param_map)
            at_values = seed(substitute(guide, data=values), density_key)
            log_q, _ = log_density(at_values, args, kwargs, fixed)
            log_p, scored = log_density(replay(seed(model, model_key), drawn), args, kwargs, param_map)
            mutable = [name for t in (drawn, scored) for name, site in t.items() if site["type"] == "mutable"]
            if mutable:
                raise NotImplementedError(
                    f"PathGradientELBO expected a model and a guide without mutable state; got the sites {mutable}. "
                    "Fix: loss = numpyro.infer.Trace_ELBO()"
                )
            return log_p - log_q

        if self.num_particles == 1:
            elbo = particle(rng_key)
        else:
            elbo = jnp.mean(self.vectorize_particles_fn(particle, jr.split(rng_key, self.num_particles)))
        return {"loss": -elbo, "mutable_state": None}
