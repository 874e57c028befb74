"""Twisted chains: densities in closed form of which no mixture of few Gaussians is near."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

SHIFTS = (-1.5, 0.0, 1.5)
SCALES = (0.6, 1.0, 1.4)
NOISE = 0.5


class TwistedChain(dist.Distribution):
    r"""Three equally likely regimes $x = a_r + b_r t$ of a chain $t_j = 0.5 z_j + 0.5 \sin 2 t_{j-1}$, with $t_0 = 0.5 z_0$.

    Args:
        dim: length of the chain.
    """

    support = constraints.real_vector
    has_rsample = False

    def __init__(self, dim: int):
        super().__init__((), (dim,))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, shape `(*sample_shape, dim)`."""
        which, noise = jax.random.split(key)
        regime = jax.random.randint(which, (*sample_shape, 1), 0, len(SHIFTS))
        z = NOISE * jax.random.normal(noise, (*sample_shape, *self.event_shape))
        links = [z[..., 0]]
        for j in range(1, self.event_shape[0]):
            links.append(z[..., j] + 0.5 * jnp.sin(2.0 * links[-1]))
        return jnp.asarray(SHIFTS)[regime] + jnp.asarray(SCALES)[regime] * jnp.stack(links, axis=-1)

    def rows(self, count: int, seed: int) -> np.ndarray:
        """Draws as a table, shape `(count, dim)`, float64."""
        return np.asarray(self.sample(jax.random.key(seed), (count,)), np.float64)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density in nats, of the batch shape of `value`."""
        scales = jnp.asarray(SCALES)
        chains = (value[..., None, :] - jnp.asarray(SHIFTS)[:, None]) / scales[:, None]
        means = jnp.pad(0.5 * jnp.sin(2.0 * chains[..., :-1]), [(0, 0)] * (chains.ndim - 1) + [(1, 0)])
        each = dist.Normal(means, NOISE).to_event(1).log_prob(chains) - self.event_shape[0] * jnp.log(scales)
        return jax.scipy.special.logsumexp(each, axis=-1) - np.log(len(SHIFTS))
