"""A network that predicts noise, written in flax and trained in the way of DDPM: what a user might bring."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flax import nnx

BETAS = np.linspace(1e-4, 0.02, 1000)
KEPT = np.cumprod(1.0 - BETAS)


class NoisePredictor(nnx.Module):
    """Two hidden layers on the noisy event and the step."""

    def __init__(self, dim: int, width: int, rngs: nnx.Rngs):
        self.inward = nnx.Linear(dim + 16, width, rngs=rngs)
        self.middle = nnx.Linear(width, width, rngs=rngs)
        self.outward = nnx.Linear(width, dim, rngs=rngs)

    def hidden(self, x: jax.Array, step: jax.Array) -> jax.Array:
        """Last hidden layer."""
        phases = step[..., None] / 1000.0 * jnp.pi * jnp.arange(1, 9)
        hidden = nnx.silu(self.inward(jnp.concatenate([x, jnp.sin(phases), jnp.cos(phases)], axis=-1)))
        return nnx.silu(hidden + self.middle(hidden))

    def __call__(self, x: jax.Array, step: jax.Array) -> jax.Array:
        return self.outward(self.hidden(x, step))


def train(data: np.ndarray, *, width: int = 256, steps: int = 8000, batch_size: int = 512) -> NoisePredictor:
    """A network trained on the simple loss of Ho et al. (2020)."""
    network = NoisePredictor(data.shape[1], width, nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(2e-3, steps)
    optimizer = nnx.Optimizer(network, optax.adam(schedule), wrt=nnx.Param)
    table, kept = jnp.asarray(data, float), jnp.asarray(KEPT, float)

    @nnx.jit
    def update(network: NoisePredictor, optimizer: nnx.Optimizer, key: jax.Array) -> None:
        row_key, step_key, noise_key = jr.split(key, 3)
        x = table[jr.randint(row_key, (batch_size,), 0, len(table))]
        step = jr.randint(step_key, (batch_size,), 0, len(kept))
        noise = jr.normal(noise_key, x.shape)
        level = kept[step][:, None]
        noisy = jnp.sqrt(level) * x + jnp.sqrt(1.0 - level) * noise
        gradient = nnx.grad(lambda n: jnp.mean(jnp.square(n(noisy, step.astype(float)) - noise)))(network)
        optimizer.update(network, gradient)

    for key in jr.split(jr.key(0), steps):
        update(network, optimizer, key)
    return network
