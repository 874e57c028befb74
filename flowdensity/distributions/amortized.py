"""A learned density at the price of one network, as a numpyro distribution."""

import copy
from typing import Any

import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import validate_sample

from .._checks import check_kind
from .._pytree import copied_axes, in_session, merge, split, without_copies
from .._registry import Kind, register
from .._typing import Array, ArrayLike, Key
from ..data.interior import off_edges
from ..data.tables import Named
from ..models.energy import EnergyNetwork
from . import batching
from .flow import FlowDensity
from .scanned import is_one, promoted


class AmortizedDensity(dist.Distribution):
    """A `FlowDensity` whose log density has been distilled into one network, with which `log_prob` costs one pass.

    Whatever else it is asked for, it has from the flow: samples, the base, the support and the names of its values. How far
    the two are apart is in the report of `distill`; `flow` is the density it was distilled from, to which a posterior can be
    reweighted.

    Args:
        energy: the network.
        flow: the density it was distilled from, with or without its context.
        validate_args: as in numpyro.

    Raises:
        TypeError: if an argument is of the wrong kind.
    """

    arg_constraints = {}
    reparametrized_params = []
    pytree_data_fields = ("_arrays", "_flow")
    pytree_aux_fields = ("_rest",)

    def __init__(self, energy: EnergyNetwork, flow: FlowDensity, *, validate_args: bool | None = None):
        for name, value, kind in (("energy", energy, EnergyNetwork), ("flow", flow, FlowDensity)):
            check_kind("AmortizedDensity", name, value, kind, "fast, report = fd.distill(key, density)")
        self._arrays, self._rest = split(energy)
        self._flow = flow
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=validate_args)

    @property
    def energy(self) -> EnergyNetwork:
        """The network that has the log density of a whitened state."""
        energy = in_session(merge(self._arrays, self._rest))
        return without_copies(energy, copied_axes(self._arrays, self._rest)) if is_one(self.flow) else energy

    @property
    def flow(self) -> FlowDensity:
        """The density it was distilled from."""
        return promoted(self._flow, self.batch_shape)

    def given(self, context: ArrayLike | Named) -> "AmortizedDensity":
        """The density conditional on `context`, as `FlowDensity.given`.

        Raises:
            TypeError, ValueError: if it does not fit the model.
        """
        return AmortizedDensity(
            self.energy, self.flow.given(context), validate_args=self.__dict__.get("_validate_args")
        )

    # numpyro's interface -------------------------------------------------------------------------

    @constraints.dependent_property(is_discrete=False)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return self.flow.support

    @property
    def has_rsample(self) -> bool:
        return True

    def sample(self, key: Key | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.flow.sample(key, sample_shape)

    def _validate_sample(self, value: ArrayLike) -> Any:
        return super()._validate_sample(off_edges(self.support, value))

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats, shape `value.shape[:-event_dim]` broadcast with `batch_shape`."""
        value, context = self.flow.checked("AmortizedDensity.log_prob", value)
        return batching.energies((self.energy, self.flow.model), value, context)


@promote_batch_shape.register(AmortizedDensity)  # type: ignore[arg-type]
def _promote_batch_shape(density: Any) -> Any:
    outer = copy.copy(density)
    outer._batch_shape = promote_batch_shape(density.flow).batch_shape
    return outer


register(
    "AmortizedDensity",
    Kind(
        AmortizedDensity,
        {"energy": EnergyNetwork, "flow": FlowDensity, "validate_args": bool | None},
        AmortizedDensity,
        lambda density: {
            "energy": density.energy,
            "flow": density.flow,
            "validate_args": density.__dict__.get("_validate_args"),
        },
    ),
)
