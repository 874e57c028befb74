"""A learned density whose log density costs one pass of a network, as a numpyro distribution."""

from typing import final

from .._checks import check_kind
from .._numpyro import own_validation
from .._registry import Kind, register
from ..models.log_density import LogDensityNetwork
from .flow import FlowDensity
from .learned import AbstractLearnedDensity


@final
class AmortizedDensity(AbstractLearnedDensity):
    """A `FlowDensity` whose log density has been distilled into one network: `log_prob` costs one pass of it.

    Samples, the base, the support and the names of values are those of the flow. The report of `distill` says how far the network
    is from the flow; `flow` is the density it was distilled from, to which a posterior can be reweighted.

    Args:
        network: the network.
        flow: the density it was distilled from, with or without its context.
        validate_args: as in numpyro; as in `flow` by default.

    Raises:
        TypeError: if an argument is of the wrong kind.
    """

    is_amortized = True

    def __init__(self, network: LogDensityNetwork, flow: FlowDensity, *, validate_args: bool | None = None):
        for name, value, kind in (("network", network, LogDensityNetwork), ("flow", flow, FlowDensity)):
            check_kind("AmortizedDensity", name, value, kind, "fast, report = fd.distill(key, density)")
        arguments = flow.arguments
        if validate_args is not None:
            arguments["validate_args"] = validate_args
        super().__init__(**arguments, own=network)

    @property
    def flow(self) -> FlowDensity:
        """The density that this one was distilled from."""
        return self._inside(FlowDensity)

    @property
    def state_log_prob(self) -> LogDensityNetwork:
        """The network: log density of one whitened state given one whitened context, in nats."""
        return self._own


register(
    "AmortizedDensity",
    Kind(
        AmortizedDensity,
        {"network": LogDensityNetwork, "flow": FlowDensity, "validate_args": bool | None},
        AmortizedDensity,
        lambda density: {
            "network": density.state_log_prob,
            "flow": density.flow,
            "validate_args": own_validation(density),
        },
    ),
)
