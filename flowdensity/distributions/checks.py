"""Checks that a learned density, or a model of one, is what it is said to be, with the line that makes it that.

The line depends on what came: a model, an expanded density and an amortized one are each a step away from a density.
"""

from types import UnionType
from typing import Any

import numpyro.distributions as dist

from .._checks import check_kind
from ..models.flows import AbstractProbabilityFlow
from .amortized import AmortizedDensity
from .flow import FlowDensity

LEARNED = FlowDensity | AmortizedDensity


def check_density(caller: str, density: Any, kind: type | UnionType = LEARNED) -> None:
    """Raise a TypeError unless `density` is a `kind` of learned density."""
    check_kind(caller, "density", density, kind, _density_line(density))


def check_flow_model(caller: str, model: Any) -> None:
    """Raise a TypeError unless `model` is a probability flow."""
    line = "model = density.model"
    if isinstance(model, FlowDensity):
        line = "model = model.model"
    elif isinstance(model, AmortizedDensity):
        line = "model = model.flow.model"
    check_kind(caller, "model", model, AbstractProbabilityFlow, line)


def check_given(caller: str, flow: FlowDensity) -> None:
    """Raise a ValueError where a conditional density has not been given its context."""
    if flow.context is None:
        raise ValueError(
            f"{caller} expected `density` with its context, of shape {flow.context_shape}; this conditional density has not "
            "been given one. Fix: density = density.given(context)"
        )


def _density_line(density: Any) -> str:
    if isinstance(density, AbstractProbabilityFlow):
        return "density = fd.FlowDensity(density)"
    if isinstance(density, AmortizedDensity):
        return "density = density.flow"
    inner, line = density, "density = density"
    while isinstance(inner, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        inner, line = inner.base_dist, f"{line}.base_dist"
    return line if isinstance(inner, LEARNED) else "density, report = fd.fit_flow(key, data)"
