"""The mixtures of the benchmarks, with their exact density, and posteriors under them."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal


class Mixture:
    """Six equally likely Gaussians: means N(0, 1.5^2), covariances 0.25 A A' / dim + 0.05 I, A of standard normals."""

    def __init__(self, dim: int, seed: int, components: int = 6):
        rng = np.random.default_rng(seed)
        self.dim = dim
        self.means = rng.normal(0.0, 1.5, (components, dim))
        factors = rng.normal(size=(components, dim, dim))
        self.covariances = 0.25 * factors @ factors.swapaxes(1, 2) / dim + 0.05 * np.eye(dim)

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Draws, shape `(count, dim)`."""
        rng = np.random.default_rng(seed)
        which = rng.integers(len(self.means), size=count)
        noise = rng.normal(size=(count, self.dim))
        return self.means[which] + np.einsum("nij,nj->ni", np.linalg.cholesky(self.covariances)[which], noise)

    def log_joint(self, points: np.ndarray) -> np.ndarray:
        """Log density of component and point together, in nats, shape `(components, points)`."""
        each = [multivariate_normal.logpdf(points, m, c) for m, c in zip(self.means, self.covariances, strict=True)]
        return np.stack(each) - np.log(len(self.means))

    def log_prob(self, points: np.ndarray) -> np.ndarray:
        """Log density in nats, shape `(points,)`."""
        return logsumexp(self.log_joint(points), axis=0)


def closed_form(mixture: Mixture) -> dist.Distribution:
    """The mixture itself as a numpyro distribution."""
    return dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.zeros(len(mixture.means))),
        dist.MultivariateNormal(
            jnp.asarray(mixture.means, float), covariance_matrix=jnp.asarray(mixture.covariances, float)
        ),
    )


def in_view(mixture: Mixture, observed: np.ndarray, noise: float, seen: np.ndarray | None = None) -> np.ndarray:
    """Weight of each component in the posterior of a point of which coordinates `seen`, all by default, are observed."""
    seen = np.arange(mixture.dim) if seen is None else seen
    blur = noise**2 * np.eye(len(seen))
    logits = [
        multivariate_normal.logpdf(observed, m[seen], c[np.ix_(seen, seen)] + blur)
        for m, c in zip(mixture.means, mixture.covariances, strict=True)
    ]
    return softmax(np.asarray(logits))
