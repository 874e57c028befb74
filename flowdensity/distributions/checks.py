"""Checks that an argument is a learned density or the model of one, with a fix that depends on the argument.

A model, an expanded density and an amortized density each need a different line of code to become the density of a flow.
"""

from typing import Any

from .._checks import check_kind
from .._numpyro import layers
from ..models.flows import AbstractProbabilityFlow
from .amortized import AmortizedDensity
from .flow import FlowDensity
from .learned import AbstractLearnedDensity

KINDS = FlowDensity | AmortizedDensity
"""Learned densities of the package, as named in errors. The checks accept every `AbstractLearnedDensity`."""


def check_density(caller: str, density: Any, kind: type = AbstractLearnedDensity) -> None:
    """Raise a TypeError unless `density` is a learned density of the given kind."""
    if not isinstance(density, kind):
        expected = KINDS if kind is AbstractLearnedDensity else kind
        check_kind(caller, "density", density, expected, _density_line(density))


def check_learned(caller: str, name: str, value: Any, fix: str) -> None:
    """Raise a TypeError with the given fix unless the argument called `name` is a learned density."""
    if not isinstance(value, AbstractLearnedDensity):
        check_kind(caller, name, value, KINDS, fix)


def check_flow_model(caller: str, model: Any) -> None:
    """Raise a TypeError unless `model` is a probability flow."""
    line = "model = model.model" if isinstance(model, AbstractLearnedDensity) else "model = density.model"
    check_kind(caller, "model", model, AbstractProbabilityFlow, line)


def check_given(caller: str, density: AbstractLearnedDensity) -> None:
    """Raise a ValueError if a conditional density has not been given its context."""
    if density.context is None:
        raise ValueError(
            f"{caller} expected `density` with its context, of shape {density.context_shape}; this conditional density has not "
            "been given one. Fix: density = density.given(context)"
        )


def _density_line(density: Any) -> str:
    if isinstance(density, AbstractProbabilityFlow):
        return "density = fd.FlowDensity(density)"
    if isinstance(density, AbstractLearnedDensity):
        return "density = density.flow"
    if isinstance(getattr(density, "density", None), AbstractLearnedDensity):
        return "density = density.density"
    found = layers(density)
    if not isinstance(found[-1], AbstractLearnedDensity):
        return "density, report = fd.fit_flow(key, data)"
    return f"density = density{'.base_dist' * (len(found) - 1)}"
