r"""Scaling: the invertible map between the user's events and the model's whitened coordinates.

The scaling is a chain of transforms. First, numpyro's bijection maps an event $x$ from its support to a vector on the real line.
Second, coordinates with long tails, edges or spikes are made nearly normal (`transforms/candidates.py`). Third, the result $u$
is whitened, $y = W(u - \mu)$. $W$ is the inverse of $S P^{1/2}$, where $S$ holds the standard deviations and $P^{1/2}$ is the
symmetric root of a shrunk correlation matrix. Among all whitenings, this one has the largest correlation
between each whitened coordinate and its own column (in an image, its own pixel), and it does not depend on the order of the
columns (Kessy et al. 2018, American Statistician 72).
$N(0, I)$ in $y$ is the fitted Gaussian in $u$, so a model only learns the departure from it. The log determinant of the whole
map is computed only here.
"""

from math import prod
from typing import ClassVar, cast

import equinox as eqx
import numpy as np
from numpyro.distributions import constraints

from .._registry import savable
from .._typing import Array, Float, Scalar, State
from .sites import Sites
from .statistics import moments, shares, times_rows, whitening
from .transforms.affine import Affine
from .transforms.candidates import choose_transforms
from .transforms.interface import AbstractTransform, Chain
from .transforms.support import FromSupport, unconstrain


@savable
class Scaling(eqx.Module):
    """Invertible map between an event in the user's units and a whitened state of shape `(dim,)`.

    Args:
        location: mean of the transformed events, shape `(dim,)`.
        scale: root of their covariance with a positive determinant, shape `(dim, dim)`, or standard deviations, `(dim,)`.
        support: numpyro constraint of one event.
        event_shape: shape of one event.
        sites: names and shapes of the values in one event; `None` if they have no names.
        transforms: transforms between the support's bijection and the whitening, in this order.

    Attributes:
        chain: the whole map, from `FromSupport` to `Affine`.
    """

    chain: Chain
    sites: Sites | None = eqx.field(static=True)

    has_absent_rows: ClassVar[bool] = False
    """Whether rows of a context may be absent, and are then NaN."""

    def __init__(
        self,
        location: np.ndarray | Array,
        scale: np.ndarray | Array,
        support: constraints.Constraint,
        event_shape: tuple[int, ...],
        sites: Sites | None = None,
        transforms: tuple[AbstractTransform, ...] = (),
    ):
        self.chain = Chain((FromSupport(support, event_shape), *transforms, Affine(location, scale)))
        self.sites = sites

    def __check_init__(self) -> None:
        kinds = [type(transform) for transform in self.chain.transforms]
        if kinds[:1] != [FromSupport] or kinds[-1:] != [Affine]:
            raise ValueError(
                f"Scaling expected a chain from FromSupport to Affine; got {[cls.__name__ for cls in kinds]}"
            )

    @property
    def support(self) -> constraints.Constraint:
        """numpyro constraint of one event."""
        return self._from_support.support

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self._from_support.event_shape

    @property
    def location(self) -> Float[Array, " dim"]:
        """Mean of the transformed events before whitening."""
        return self._affine.location

    @property
    def scale(self) -> Float[Array, "dim dim"] | Float[Array, " dim"]:
        """Square root of the covariance of the events before whitening; if it is diagonal, their standard deviations.

        The events are those after the transforms.
        """
        return self._affine.scale

    @property
    def whitener(self) -> Float[Array, "dim dim"] | Float[Array, " dim"]:
        """Inverse of `scale`."""
        return self._affine.whitener

    @property
    def dim(self) -> int:
        """Dimension of the whitened state."""
        return self.location.shape[-1]

    @property
    def _from_support(self) -> FromSupport:
        return cast(FromSupport, self.chain.transforms[0])

    @property
    def _affine(self) -> Affine:
        return cast(Affine, self.chain.transforms[-1])

    def summary(self) -> str:
        """List the columns that were transformed before the whitening, in one line of text."""
        names = [str(coordinate) for coordinate in range(self.dim)]
        # Site names refer to coordinates of the event. An event on a simplex, for example, has one more than the state.
        if self.sites is not None and sum(map(prod, self.sites.shapes)) == self.dim:
            names = [repr(self.sites.site_of(coordinate)) for coordinate in range(self.dim)]
        return f"columns: {self.chain.summary(names) or 'whitened, none transformed'}"

    def whiten(self, event: Float[Array, "*event"]) -> tuple[State, Scalar]:
        """Whitened state of an event, shape `(dim,)`, and the log determinant of the map there, in nats.

        For an event on an edge of the support, both are those of the nearest point inside.
        """
        return self.chain.forward_and_log_det(event)

    def unwhiten(self, state: State) -> Float[Array, "*event"]:
        """Event with the whitened state `state`; if it rounds to an edge of the support, the nearest point inside."""
        return self.chain.inverse(state)


def fit_scaling(
    events: np.ndarray,
    support: constraints.Constraint = constraints.real,
    sites: Sites | None = None,
    weights: np.ndarray | None = None,
) -> tuple[Scaling, np.ndarray]:
    """Choose the transforms of a table of events, and whiten the result with its mean and shrunk covariance.

    Args:
        events: float64 array of shape `(n, *event_shape)`, already checked.
        support: numpyro constraint of one event.
        sites: names and shapes of the values in one event.
        weights: weights of the rows with sum 1; `None` means equal weights.

    Returns:
        The map, and the whitened table, shape `(n, dim)`, computed in float64 throughout.
    """
    table = choose_transforms(unconstrain(events, support).reshape(len(events), -1), weights)
    location, scale, whitener = whitening(table.rows, weights)
    scaling = Scaling(location, scale, support, events.shape[1:], sites, table.transforms)
    return scaling, times_rows(whitener, table.rows - location)


def standardize(
    contexts: np.ndarray, sites: Sites | None = None, weights: np.ndarray | None = None
) -> tuple[Scaling, np.ndarray]:
    """Scale each coordinate of a table of contexts, shape `(n, *context_shape)`, to mean 0 and standard deviation 1."""
    table = contexts.reshape(len(contexts), -1)
    location, deviation = moments(table, shares(weights, len(table)))
    return (
        Scaling(location, deviation, constraints.real, contexts.shape[1:], sites),
        (table - location) / deviation,
    )
