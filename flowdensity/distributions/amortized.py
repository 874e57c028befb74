"""Learned density whose `log_prob` is one pass of a network, as a numpyro distribution."""

from typing import final

from .._checks import check_kind
from .._numpyro import own_validation
from .._registry import Kind, register
from ..models.log_density import LogDensityNetwork
from .flow import FlowDensity
from .learned import AbstractLearnedDensity


@final
class AmortizedDensity(AbstractLearnedDensity):
    """A `FlowDensity` whose log density has been distilled into one network, so that `log_prob` takes a single pass.

    Samples, base, support and names of values are those of the flow. The report of `distill` gives the difference between the
    network and the flow. The attribute `flow` is the density that the network was distilled from, and a posterior can be
    reweighted to it.

    Args:
        network: the network.
        flow: the density that the network was distilled from, with or without its context.
        validate_args: as in numpyro; by default as in `flow`.

    Raises:
        TypeError: if an argument has the wrong type.

    Examples:
        >>> fast.log_prob(data)  # one pass of a network for each row
        >>> fast.log_prob(data) - fast.flow.log_prob(data)  # its error, in nats
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
        """The density that this density was distilled from."""
        return self._inside(FlowDensity)

    @property
    def state_log_prob(self) -> LogDensityNetwork:
        """The network, which computes the log density of one whitened state given one whitened context, in nats."""
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
