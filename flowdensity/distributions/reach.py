"""A warning about contexts that are far outside those of the fit."""

import weakref

import numpy as np
from jax.core import Tracer

from .._typing import Array
from .._warnings import warn
from ..models.flows import AbstractProbabilityFlow

_SAID: set[int] = set()
"""Models that have been warned about, by the identity of the array that holds their reach."""


def warn_if_far(model: AbstractProbabilityFlow, contexts: Array | None) -> None:
    """Warn, once for each model, if contexts lie beyond the radius at which its networks see all contexts alike.

    Traced contexts are not looked at: a sampler would warn about a state that it leaves in its next step.

    Args:
        model: a probability flow; without a `context_reach` it has no such radius.
        contexts: flat contexts in the user's units, shape `(*batch_shape, context_dim)`; None where there are none.
    """
    reach = getattr(model, "context_reach", None)
    if reach is None or contexts is None or id(reach) in _SAID:
        return
    scaling = model.context_scaling
    parts = (reach, contexts, scaling.location, scaling.whitener)
    if any(isinstance(part, Tracer) or not getattr(part, "is_fully_addressable", True) for part in parts) or np.ndim(
        reach
    ):
        return
    limit, table, location, whitener = (np.asarray(part, np.float64) for part in parts)
    table = table.reshape(-1, table.shape[-1])
    white = (table - location) @ whitener.T if whitener.ndim == 2 else (table - location) * whitener
    radii = np.linalg.norm(white, axis=1)
    if not np.any(radii > limit):
        return
    _SAID.add(id(reach))
    weakref.finalize(reach, _SAID.discard, id(reach))
    row = int(np.nanargmax(radii))
    column = int(np.nanargmax(np.abs(white[row])))
    name = str(column) if scaling.sites is None else repr(scaling.sites.site_of(column))
    warn(
        f"{int(np.sum(radii > limit))} of {len(table)} contexts lie far outside those of the fit; the density sees them as at "
        f"the edge of these. The farthest is {radii[row]:.3g} from the mean in whitened units, and the model reaches "
        f"{limit:.3g}. Its coordinate {name} is {table[row, column]:.6g}, {white[row, column]:+.3g} standard deviations from the "
        "mean of the fit. This is said once for each model. A fit with rows whose `context` is as far out knows more. "
        "Fix: density, report = fd.fit_flow(key, data, context)"
    )
