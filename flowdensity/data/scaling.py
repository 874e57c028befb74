r"""Whitening and supports: one invertible map between the user's events and the model's coordinates.

An event $x$ on its support goes to the real line by numpyro's own bijection for that constraint and is flattened to a vector $u$.
Its coordinates with long tails are straightened (`JohnsonSU`), and those with edges and spikes taken to normal ones
(`MarginalGaussianisation`); or, where tails are long in all directions together, all of them along the radius
(`RadialGaussianisation`). That is whitened, $y = W(u - \mu)$. $W$ is the inverse of
$S P^{1/2}$, with $S$ the standard deviations and $P^{1/2}$ the symmetric root of a shrunk correlation matrix: of all whitenings
the one whose coordinates stay closest to the columns (Kessy et al. 2018, American Statistician 72), whatever their order, and
in an image to its places. $N(0, I)$ in $y$ is the fitted Gaussian in $u$: what a model has to learn is only the departure from
it. The log-determinant of the whole map lives here and nowhere else.
"""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from .._typing import Array, Float, Scalar, State
from .interior import bijection, interior_bijection
from .johnson import JohnsonSU, fit_johnson
from .marginals import MarginalGaussianisation, fit_marginals
from .mixtures import fit_mixture
from .parts import parts
from .radial import RadialGaussianisation, fit_radial
from .sites import Sites
from .weights import resampled, shares
from .whitening import FULL_COVARIANCE_LIMIT, LEAST, gaussian_log_densities, moments, times_rows, whitening

Bend = JohnsonSU | MarginalGaussianisation | RadialGaussianisation
RADIAL_GAIN = 0.05
"""The radius may be straightened instead of the coordinates if rows are likelier by so many nats for each of these."""
COMPONENTS, FLOOR = 4, 0.1
"""Of the mixture that has to agree, and what is added to their variances."""
NAMED = 8
"""At most so many coordinates are named in a line of text."""
FOLDS, ROWS, ERRORS = 5, 4_000, 3.0
"""It is fitted to at most so many rows less one of so many parts, and agrees if the gain is so many standard errors."""


class Scaling(eqx.Module):
    """Invertible map between an event in the user's units and a whitened state of shape `(dim,)`.

    Args:
        location: mean of the unconstrained, flattened and straightened events, shape `(dim,)`.
        scale: a root of their covariance with positive determinant, shape `(dim, dim)`, or standard deviations, `(dim,)`.
        support: numpyro constraint of one event.
        event_shape: shape of one event.
        sites: names and shapes of the values that one event is made of; None where it has no names.
        tails: how long tails are straightened, those of coordinates or of the radius; None where there are none.
        edges: how coordinates with edges and spikes are straightened after that; None where there are none.
    """

    location: Float[Array, " dim"]
    scale: Float[Array, "dim dim"] | Float[Array, " dim"]
    whitener: Float[Array, "dim dim"] | Float[Array, " dim"]
    log_scale: Scalar
    support: constraints.Constraint
    event_shape: tuple[int, ...] = eqx.field(static=True)
    sites: Sites | None = eqx.field(static=True)
    tails: JohnsonSU | RadialGaussianisation | None
    edges: MarginalGaussianisation | None

    def __init__(
        self,
        location: np.ndarray | Array,
        scale: np.ndarray | Array,
        support: constraints.Constraint,
        event_shape: tuple[int, ...],
        sites: Sites | None = None,
        tails: JohnsonSU | RadialGaussianisation | None = None,
        edges: MarginalGaussianisation | None = None,
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
        self.edges = edges

    @property
    def dim(self) -> int:
        """Dimension of the whitened state."""
        return self.location.shape[-1]

    @property
    def _bends(self) -> list[Bend]:
        """In the order in which they straighten."""
        return [bends for bends in (self.tails, self.edges) if bends is not None]

    def summary(self) -> str:
        """What was straightened, in one line of text."""
        match self.tails:
            case RadialGaussianisation(degrees=degrees):
                tails = [f"tails straightened along the radius, {float(degrees):.2g} degrees of freedom"]
            case JohnsonSU(bent=bent):
                tails = [f"tails of {self._columns(np.flatnonzero(bent))} straightened"]
            case None:
                tails = []
        edges = [] if self.edges is None else [f"{self._columns(self.edges.columns)} made normal by their quantiles"]
        return f"columns: {'; '.join([*tails, *edges]) or 'whitened, none straightened'}"

    def _columns(self, numbers: Iterable[int | Array]) -> str:
        """Names of coordinates, or their numbers where they have none."""
        if self.sites is None or sum(map(prod, self.sites.shapes)) != self.dim:
            names = [str(int(number)) for number in numbers]
        else:
            names = list(dict.fromkeys(repr(self.sites.site_of(int(number))) for number in numbers))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return ", ".join(names[:NAMED]) + more

    def whiten(self, event: Float[Array, "*event"]) -> tuple[State, Scalar]:
        """Whitened state of an event, shape `(dim,)`, and the log-determinant of the map there, in nats.

        Both are those of the nearest point inside the support, if the event has been rounded to an edge.
        """
        transform = interior_bijection(self.support)
        unconstrained = transform._inverse(event)
        stretch = transform.log_abs_det_jacobian(unconstrained, event)
        straight, log_bends = jnp.ravel(unconstrained), jnp.zeros(())
        for bends in self._bends:
            straight, log_bend = bends.straighten(straight)
            log_bends = log_bends + log_bend
        centred = straight - self.location
        state = self.whitener @ centred if self.whitener.ndim == 2 else self.whitener * centred
        return state, log_bends - jnp.sum(stretch) - self.log_scale

    def colour(self, state: State) -> Float[Array, "*event"]:
        """Event whose whitened state is `state`; if it rounds to an edge of the support, the nearest point inside."""
        shift = self.scale @ state if self.scale.ndim == 2 else self.scale * state
        flat = self.location + shift
        for bends in reversed(self._bends):
            flat = bends.bend(flat)
        transform = interior_bijection(self.support)
        unconstrained = jnp.reshape(flat, transform.inverse_shape(self.event_shape))
        return jnp.asarray(transform(unconstrained))


def unconstrain(events: np.ndarray, support: constraints.Constraint) -> np.ndarray:
    """Events on the real line, in float64 whatever JAX's own precision; what lies on an edge of the support is not finite."""
    with jax.enable_x64(True):
        return np.asarray(bijection(support)._inverse(jnp.asarray(events)), np.float64)


class Straight(NamedTuple):
    """A table and how it came to be straight.

    Attributes:
        rows: the table, shape `(n, dim)`.
        log_dets: log-determinants of the bends at each row, shape `(n,)`.
        bends: in the order in which they straighten; None for one that was not needed.
    """

    rows: np.ndarray
    log_dets: np.ndarray
    bends: tuple[Any, ...] = ()

    def then(self, fit: Callable[..., Any], kind: type[Bend], weights: np.ndarray | None) -> Self:
        """The same after one more bend, of the arguments that are fitted to the rows."""
        found = fit(self.rows, weights)
        if found is None:
            return self._replace(bends=(*self.bends, None))
        with jax.enable_x64(True):
            rows, log_dets = jax.vmap(kind(*found).straighten)(jnp.asarray(self.rows))
        bends = (*self.bends, kind(*found))
        return self._replace(rows=np.asarray(rows), log_dets=self.log_dets + np.asarray(log_dets), bends=bends)

    def by_coordinate(self, weights: np.ndarray | None) -> Self:
        """The same with its tails, and then its edges, straightened coordinate by coordinate."""
        return self.then(fit_johnson, JohnsonSU, weights).then(fit_marginals, MarginalGaussianisation, weights)

    def by_radius(self, weights: np.ndarray | None) -> Self:
        """The same with its tails straightened along the radius."""
        return self.then(fit_radial, RadialGaussianisation, weights)

    def score(self) -> float:
        """Mean log density of the table under the Gaussian that is fitted to what is straight, nats."""
        return float(np.mean(gaussian_log_densities(self.rows, *whitening(self.rows)) + self.log_dets))

    def held_out(self) -> np.ndarray:
        """Log densities of rows under mixtures of Gaussians fitted to what is straight of other rows, fold by fold, nats."""
        found = np.zeros(len(self.rows))
        for held in parts(self.rows, FOLDS):
            kept = np.delete(self.rows, held, axis=0)
            location, scale, whitener = whitening(kept, least=LEAST * self.rows.std(axis=0))
            mixture = fit_mixture(times_rows(whitener, kept - location), COMPONENTS, FLOOR)
            white = times_rows(whitener, self.rows[held] - location)
            found[held] = mixture.score_samples(white) - np.linalg.slogdet(scale)[1] + self.log_dets[held]
        return found


def fit_scaling(
    events: np.ndarray,
    support: constraints.Constraint = constraints.real,
    sites: Sites | None = None,
    weights: np.ndarray | None = None,
) -> tuple[Scaling, np.ndarray]:
    """Straighten tails and edges in a table of events of up to 256 dimensions, and whiten it by its mean and shrunk covariance.

    Args:
        events: float64 array of shape `(n, *event_shape)`, already checked.
        support: numpyro constraint of one event.
        sites: names of what one event is made of.
        weights: of the rows, of sum 1; None weighs all alike.

    Returns:
        The map, and the whitened table, shape `(n, dim)`, computed in float64 throughout.
    """
    table = unconstrain(events, support).reshape(len(events), -1)
    straight = Straight(table, np.zeros(len(table)))
    if table.shape[1] <= FULL_COVARIANCE_LIMIT:
        radial = is_radial(resampled(table, weights, min(ROWS, len(table))))
        straight = straight.by_radius(weights) if radial else straight.by_coordinate(weights)
    location, scale, whitener = whitening(straight.rows, weights)
    scaling = Scaling(location, scale, support, events.shape[1:], sites, *straight.bends)
    return scaling, times_rows(whitener, straight.rows - location)


def is_radial(table: np.ndarray) -> bool:
    """Whether a table, shape `(n, dim)`, is likelier straightened along its radius than coordinate by coordinate.

    It must be so under one Gaussian, and on rows that were held out under a mixture: of clusters and necks, too, some rows are
    far out in many coordinates, and a map of the radius makes nothing of these straight.
    """
    plain = Straight(table, np.zeros(len(table)))
    radius = plain.by_radius(None)
    least = RADIAL_GAIN * table.shape[1]
    # Most tables have no such tails, or no radius that can be told, and no rival need be fitted.
    if radius.bends[0] is None or radius.score() - plain.score() <= least:
        return False
    coordinate = plain.by_coordinate(None)
    if radius.score() - coordinate.score() <= least:
        return False
    gains = radius.held_out() - coordinate.held_out()
    return bool(gains.mean() > ERRORS * gains.std() / np.sqrt(len(gains)))


def standardise(
    contexts: np.ndarray, sites: Sites | None = None, weights: np.ndarray | None = None
) -> tuple[Scaling, np.ndarray]:
    """Put each coordinate of a table of contexts, shape `(n, *context_shape)`, on mean 0 and standard deviation 1."""
    table = contexts.reshape(len(contexts), -1)
    location, deviation = moments(table, shares(weights, len(table)))
    return (
        Scaling(location, deviation, constraints.real, contexts.shape[1:], sites),
        (table - location) / deviation,
    )
