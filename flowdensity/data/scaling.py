r"""Whitening and supports: one invertible map between the user's events and the model's coordinates.

An event $x$ on its support goes to the real line by numpyro's own bijection for that constraint, is
flattened to a vector $u$, and whitened, $y = W(u - \mu)$. $W$ is the inverse of $S P^{1/2}$, with $S$ the standard deviations
and $P^{1/2}$ the symmetric root of a shrunk correlation matrix: of all whitenings the one whose coordinates stay closest to the
columns (Kessy et al. 2018, American Statistician 72), whatever their order, and in an image to its places. $N(0, I)$ in $y$
is the fitted Gaussian in $u$: what a model has to learn is only the departure from it. The log-determinant of the
whole map lives here and nowhere else.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from .._typing import Array, Float, Scalar, State
from .sites import Sites

FULL_COVARIANCE_LIMIT = 256
"""Above this dimension each coordinate is scaled by itself: a full matrix would cost more than the network."""


class Scaling(eqx.Module):
    """Invertible map between an event in the user's units and a whitened state of shape `(dim,)`.

    Args:
        location: mean of the unconstrained, flattened events, shape `(dim,)`.
        scale: a root of their covariance with positive determinant, shape `(dim, dim)`, or standard deviations, `(dim,)`.
        support: numpyro constraint of one event.
        event_shape: shape of one event.
        sites: names and shapes of the values that one event is made of; None where it has no names.
    """

    location: Float[Array, " dim"]
    scale: Float[Array, "dim dim"] | Float[Array, " dim"]
    whitener: Float[Array, "dim dim"] | Float[Array, " dim"]
    log_scale: Scalar
    support: constraints.Constraint
    event_shape: tuple[int, ...] = eqx.field(static=True)
    sites: Sites | None = eqx.field(static=True)

    def __init__(
        self,
        location: np.ndarray | Array,
        scale: np.ndarray | Array,
        support: constraints.Constraint,
        event_shape: tuple[int, ...],
        sites: Sites | None = None,
    ):
        # The inverse is formed once, in float64 unless it is traced: a matrix product is many times faster than a
        # triangular solve inside a sampler, and a shrunk covariance is well conditioned.
        xp = np if isinstance(scale, np.ndarray) else jnp
        whitener = xp.linalg.inv(scale) if scale.ndim == 2 else 1.0 / scale
        log_scale = xp.linalg.slogdet(scale)[1] if scale.ndim == 2 else xp.sum(xp.log(scale))
        self.location = jnp.asarray(location, float)
        self.scale = jnp.asarray(scale, float)
        self.whitener = jnp.asarray(whitener, float)
        self.log_scale = jnp.asarray(log_scale, float)
        self.support = support
        self.event_shape = event_shape
        self.sites = sites

    @property
    def dim(self) -> int:
        """Dimension of the whitened state."""
        return self.location.shape[-1]

    def whiten(self, event: Float[Array, "*event"]) -> tuple[State, Scalar]:
        """Whitened state of an event, shape `(dim,)`, and the log-determinant of the map there, in nats."""
        transform: Transform = biject_to(self.support)
        unconstrained = transform._inverse(event)
        stretch = transform.log_abs_det_jacobian(unconstrained, event)
        centred = jnp.ravel(unconstrained) - self.location
        state = self.whitener @ centred if self.whitener.ndim == 2 else self.whitener * centred
        return state, -jnp.sum(stretch) - self.log_scale

    def colour(self, state: State) -> Float[Array, "*event"]:
        """Event whose whitened state is `state`."""
        shift = self.scale @ state if self.scale.ndim == 2 else self.scale * state
        transform: Transform = biject_to(self.support)
        unconstrained = jnp.reshape(self.location + shift, transform.inverse_shape(self.event_shape))
        return jnp.asarray(transform(unconstrained))


def unconstrain(events: np.ndarray, support: constraints.Constraint) -> np.ndarray:
    """Events on the real line, by numpyro's bijection for their support, in float64 whatever JAX's own precision."""
    with jax.enable_x64(True):
        return np.asarray(biject_to(support)._inverse(jnp.asarray(events)), np.float64)


def fit_scaling(
    events: np.ndarray,
    support: constraints.Constraint = constraints.real,
    sites: Sites | None = None,
    weights: np.ndarray | None = None,
) -> tuple[Scaling, np.ndarray]:
    """Whiten a table of events by their mean and shrunk covariance.

    The covariance is shrunk towards its own diagonal scale by Ledoit and Wolf's rule (2004, J. Multivariate
    Analysis 88), up to 256 dimensions; above, each coordinate has its own scale.

    Args:
        events: float64 array of shape `(n, *event_shape)`, already checked.
        support: numpyro constraint of one event.
        sites: names of what one event is made of.
        weights: of the rows, of sum 1; None weighs all alike.

    Returns:
        The map, and the whitened table, shape `(n, dim)`, computed in float64 throughout.
    """
    table = unconstrain(events, support).reshape(len(events), -1)
    weights = _weights(weights, len(table))
    location, deviation = _moments(table, weights)
    standard = (table - location) / deviation
    if table.shape[1] <= FULL_COVARIANCE_LIMIT:
        values, vectors = np.linalg.eigh(_shrunk_correlation(standard, weights))
        scale = deviation[:, None] * (vectors * np.sqrt(values)) @ vectors.T
        white = standard @ (vectors / np.sqrt(values)) @ vectors.T
    else:
        scale, white = deviation, standard
    return Scaling(location, scale, support, events.shape[1:], sites), white


def standardise(
    contexts: np.ndarray, sites: Sites | None = None, weights: np.ndarray | None = None
) -> tuple[Scaling, np.ndarray]:
    """Put each coordinate of a table of contexts, shape `(n, *context_shape)`, on mean 0 and standard deviation 1."""
    table = contexts.reshape(len(contexts), -1)
    location, deviation = _moments(table, _weights(weights, len(table)))
    return (
        Scaling(location, deviation, constraints.real, contexts.shape[1:], sites),
        (table - location) / deviation,
    )


def _weights(weights: np.ndarray | None, rows: int) -> np.ndarray:
    return np.full(rows, 1.0 / rows) if weights is None else weights


def _moments(table: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column."""
    location = weights @ table
    return location, np.sqrt(weights @ np.square(table - location))


def _shrunk_correlation(standard: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ledoit and Wolf's estimate for standardised rows, of shape `(n, dim)`, shrunk towards the identity."""
    dim = standard.shape[1]
    weighted = weights[:, None] * standard
    correlation = weighted.T @ standard
    # The variance of a weighted mean of products, summed over all pairs of columns.
    products = np.square(weighted).T @ np.square(standard)
    crossed = correlation * ((np.square(weights)[:, None] * standard).T @ standard)
    noise = np.sum(products - 2.0 * crossed + np.sum(np.square(weights)) * np.square(correlation))
    distance = np.sum(np.square(correlation - np.eye(dim)))
    # 1e-6 keeps exactly collinear columns invertible in float32.
    shrinkage = np.clip(noise / distance, 1e-6, 1.0) if distance > 0.0 else 1.0
    return (1.0 - shrinkage) * correlation + shrinkage * np.eye(dim)
