r"""Whitening and supports: one invertible map between the user's events and the model's coordinates.

An event $x$ on its support goes to the real line by numpyro's own bijection for that constraint and is flattened to a vector $u$,
whose coordinates with long tails are straightened (`JohnsonSU`). That is whitened, $y = W(u - \mu)$. $W$ is the inverse of
$S P^{1/2}$, with $S$ the standard deviations and $P^{1/2}$ the symmetric root of a shrunk correlation matrix: of all whitenings
the one whose coordinates stay closest to the columns (Kessy et al. 2018, American Statistician 72), whatever their order, and
in an image to its places. $N(0, I)$ in $y$ is the fitted Gaussian in $u$: what a model has to learn is only the departure from
it. The log-determinant of the whole map lives here and nowhere else.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from .._typing import Array, Float, Scalar, State
from .johnson import JohnsonSU, fit_johnson
from .sites import Sites
from .weights import shares

FULL_COVARIANCE_LIMIT = 256
"""Above this dimension each coordinate is scaled by itself: a full matrix would cost more than the network."""


class Scaling(eqx.Module):
    """Invertible map between an event in the user's units and a whitened state of shape `(dim,)`.

    Args:
        location: mean of the unconstrained, flattened and straightened events, shape `(dim,)`.
        scale: a root of their covariance with positive determinant, shape `(dim, dim)`, or standard deviations, `(dim,)`.
        support: numpyro constraint of one event.
        event_shape: shape of one event.
        sites: names and shapes of the values that one event is made of; None where it has no names.
        tails: how coordinates with long tails are straightened; None where there are none.
    """

    location: Float[Array, " dim"]
    scale: Float[Array, "dim dim"] | Float[Array, " dim"]
    whitener: Float[Array, "dim dim"] | Float[Array, " dim"]
    log_scale: Scalar
    support: constraints.Constraint
    event_shape: tuple[int, ...] = eqx.field(static=True)
    sites: Sites | None = eqx.field(static=True)
    tails: JohnsonSU | None

    def __init__(
        self,
        location: np.ndarray | Array,
        scale: np.ndarray | Array,
        support: constraints.Constraint,
        event_shape: tuple[int, ...],
        sites: Sites | None = None,
        tails: JohnsonSU | None = None,
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
        self.tails = tails

    @property
    def dim(self) -> int:
        """Dimension of the whitened state."""
        return self.location.shape[-1]

    def whiten(self, event: Float[Array, "*event"]) -> tuple[State, Scalar]:
        """Whitened state of an event, shape `(dim,)`, and the log-determinant of the map there, in nats."""
        transform: Transform = biject_to(self.support)
        unconstrained = transform._inverse(event)
        stretch = transform.log_abs_det_jacobian(unconstrained, event)
        straight, log_bend = jnp.ravel(unconstrained), jnp.zeros(())
        if self.tails is not None:
            straight, log_bend = self.tails.straighten(straight)
        centred = straight - self.location
        state = self.whitener @ centred if self.whitener.ndim == 2 else self.whitener * centred
        return state, log_bend - jnp.sum(stretch) - self.log_scale

    def colour(self, state: State) -> Float[Array, "*event"]:
        """Event whose whitened state is `state`."""
        shift = self.scale @ state if self.scale.ndim == 2 else self.scale * state
        straight = self.location + shift
        flat = straight if self.tails is None else self.tails.bend(straight)
        transform: Transform = biject_to(self.support)
        unconstrained = jnp.reshape(flat, transform.inverse_shape(self.event_shape))
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
    """Straighten the long tails in a table of events of up to 256 dimensions, and whiten it by its mean and shrunk covariance.

    Args:
        events: float64 array of shape `(n, *event_shape)`, already checked.
        support: numpyro constraint of one event.
        sites: names of what one event is made of.
        weights: of the rows, of sum 1; None weighs all alike.

    Returns:
        The map, and the whitened table, shape `(n, dim)`, computed in float64 throughout.
    """
    table = unconstrain(events, support).reshape(len(events), -1)
    tails = fit_johnson(table, weights) if table.shape[1] <= FULL_COVARIANCE_LIMIT else None
    if tails is not None:
        with jax.enable_x64(True):
            table = np.asarray(jax.vmap(lambda row: JohnsonSU(*tails).straighten(row)[0])(jnp.asarray(table)))
    location, scale, whitener = whitening(table, weights)
    bent = None if tails is None else JohnsonSU(*tails)
    return Scaling(location, scale, support, events.shape[1:], sites, bent), times_rows(whitener, table - location)


def whitening(
    table: np.ndarray, weights: np.ndarray | None = None, least: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, root of the covariance and its inverse for a table of shape `(n, dim)`, with deviations of at `least` so much.

    The covariance is shrunk towards its own diagonal scale by Ledoit and Wolf's rule (2004, J. Multivariate
    Analysis 88), up to 256 dimensions; above, each coordinate has its own scale and both roots are vectors.
    """
    weights = shares(weights, len(table))
    location, deviation = _moments(table, weights)
    deviation = np.maximum(deviation, least)
    if table.shape[1] > FULL_COVARIANCE_LIMIT:
        return location, deviation, 1.0 / deviation
    values, vectors = np.linalg.eigh(_shrunk_correlation((table - location) / deviation, weights))
    scale = deviation[:, None] * (vectors * np.sqrt(values)) @ vectors.T
    return location, scale, (vectors / np.sqrt(values)) @ vectors.T / deviation


def times_rows(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Product of a matrix, or the vector of a diagonal one, with each row of a table."""
    return rows @ matrix.T if matrix.ndim == 2 else rows * matrix


def standardise(
    contexts: np.ndarray, sites: Sites | None = None, weights: np.ndarray | None = None
) -> tuple[Scaling, np.ndarray]:
    """Put each coordinate of a table of contexts, shape `(n, *context_shape)`, on mean 0 and standard deviation 1."""
    table = contexts.reshape(len(contexts), -1)
    location, deviation = _moments(table, shares(weights, len(table)))
    return (
        Scaling(location, deviation, constraints.real, contexts.shape[1:], sites),
        (table - location) / deviation,
    )


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
