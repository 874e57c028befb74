"""Base class of all learned densities."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from .._checks import check_count, check_key, check_kind, check_number, check_sample_shape, real_jax_array, reshaping
from .._numpyro import AbstractDistributionMeta, own_validation
from .._pytree import copied_axes, in_session, merge, split, without_copies
from .._typing import Array, ArrayLike, Context, Float, Key, Scalar, State
from ..data.interior import off_edges
from ..data.sites import Sites
from ..data.tables import Named
from ..divergence.exact import ExactDivergence
from ..divergence.interface import AbstractDivergence
from ..models.flows import AbstractProbabilityFlow, follows_path
from ..solving import AbstractSolver, FixedStep
from . import batching
from .display import described
from .inputs import event_array, flat_context, warn_if_far

Density = TypeVar("Density", bound="AbstractLearnedDensity")


class AbstractLearnedDensity(dist.Distribution, metaclass=AbstractDistributionMeta):
    r"""Density that was learned from samples, for `numpyro.sample`.

    Every learned density contains a probability flow, which maps standard-normal noise to events. The flow defines `sample`,
    `from_base`, `to_base` and the support. Subclasses differ in `log_prob`.

    A subclass defines two properties: `flow` and `state_log_prob`. Its constructor passes the parts of the flow to this
    constructor, and everything else that the density consists of as `own`. This class then takes care of batch axes, plates,
    `vmap`, `scan` and the pytree. If samples do not follow the flow, the subclass also overrides `base`, `_draw_noise` and
    `sample_diffusion`.

    Args:
        model: the probability flow.
        context: values to condition on, shape `(*batch_shape, *context_shape)`, or a dict of such arrays if the density was
            learned with names. None leaves a conditional density without a context, which `given` can add later.
        divergence: the divergence of the velocity; `ExactDivergence()` by default.
        solver: the ODE solver; `FixedStep()` by default.
        own: a pytree of everything that the density consists of besides its flow.
        validate_args: as in numpyro.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, or `context` does not fit the model.
    """

    is_amortized: ClassVar[bool] = False
    """Whether `log_prob` is the output of a network rather than an integral along the ODE."""

    arg_constraints = {"context": constraints.real_vector}
    reparametrized_params = ["context"]
    pytree_data_fields = ("_arrays", "_own_arrays", "context")
    pytree_aux_fields = ("_rest", "_own_rest")

    def __init__(
        self,
        model: AbstractProbabilityFlow,
        context: ArrayLike | Named | None = None,
        *,
        divergence: AbstractDivergence | None = None,
        solver: AbstractSolver | None = None,
        own: Any = None,
        validate_args: bool | None = None,
    ):
        divergence = ExactDivergence() if divergence is None else divergence
        solver = FixedStep() if solver is None else solver
        caller = type(self).__name__
        whose = "model" if isinstance(model, AbstractLearnedDensity) else "density"
        for name, value, kind, fix in (
            ("model", model, AbstractProbabilityFlow, f"{whose}.model"),
            ("divergence", divergence, AbstractDivergence, "fd.ExactDivergence()"),
            ("solver", solver, AbstractSolver, "fd.FixedStep(steps=16)"),
        ):
            check_kind(caller, name, value, kind, f"{name}={fix}")
        if np.ndim(model.scaling.location) > 1:
            raise ValueError(
                f"{caller} expected one `model`; got a stack of {len(model.scaling.location)}, whose arrays have a leading "
                "axis, as after jax.vmap or jax.tree.map. jax.vmap creates a stack of densities, and is also needed to evaluate "
                "it. "
                f"Fix: jax.vmap(fd.{caller})(model)"
            )
        self._arrays, self._rest = split((model, divergence, solver))
        self._own_arrays, self._own_rest = split(own)
        self.context = flat_context(caller, model, context)
        warn_if_far(model, self.context)
        if model.context_scaling.has_absent_rows:
            self.arg_constraints = {"context": constraints.dependent}
        batch_shape = () if self.context is None else self.context.shape[:-1]
        super().__init__(batch_shape, model.event_shape, validate_args=validate_args)

    # Methods that a subclass defines ---------------------------------------------------------------

    @property
    @abstractmethod
    def flow(self) -> "AbstractLearnedDensity":
        """The `FlowDensity` with the same context: this density, or the one that it was distilled or derived from."""

    @property
    @abstractmethod
    def state_log_prob(self) -> Callable[[State, Context], Scalar]:
        """Log density of a single whitened state given a single whitened context, in nats, as a callable pytree."""

    def _draw_noise(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Draw from `base`, shape `(*shape, dim)`."""
        return jr.normal(key, (*shape, self.model.dim))

    # The parts -----------------------------------------------------------------------------------

    @property
    def _parts(self) -> tuple[AbstractProbabilityFlow, AbstractDivergence, AbstractSolver]:
        return self._merged(self._arrays, self._rest)

    @property
    def _own(self) -> Any:
        return self._merged(self._own_arrays, self._own_rest)

    def _merged(self, arrays: Any, rest: Any) -> Any:
        parts = in_session(merge(arrays, rest))
        # numpyro's scan stacks a copy of every array for each step, and the copies would become batch axes. A model has no batch
        # axes of its own, and values that scan does not sample are identical in all steps.
        return without_copies(parts, copied_axes(arrays, rest)) if self._is_one else parts

    @property
    def _is_one(self) -> bool:
        """Whether the batch axes are those of contexts, and not those of several densities, as after `vmap`."""
        return self.context is not None and np.shape(self.context)[:-1] == self.batch_shape

    def _inside(self, kind: type[Density]) -> Density:
        """A density of another kind with the same flow, context and batch shape, and no parts of its own."""
        other = object.__new__(kind)
        # The constructor cannot be used, since it refuses a stack of models, and a stack of densities has a stack of flows.
        vars(other).update(vars(self))
        other._own_arrays, other._own_rest = split(None)
        return other

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments with which the constructor of `FlowDensity` makes the flow of this density."""
        model, divergence, solver = self._parts
        context = self.context
        if context is not None:
            # The context is stored flat, and the constructor takes it in its own shape.
            context = context.reshape(*context.shape[:-1], *model.context_shape) if context.shape[-1] else None
        parts = {"model": model, "context": context, "divergence": divergence, "solver": solver}
        return parts | {"validate_args": own_validation(self)}

    @property
    def model(self) -> AbstractProbabilityFlow:
        """The probability flow."""
        return self._parts[0]

    @property
    def divergence(self) -> AbstractDivergence:
        """The divergence of the flow's velocity, which `log_prob` integrates unless it is amortized."""
        return self._parts[1]

    @property
    def solver(self) -> AbstractSolver:
        """The ODE solver of the flow."""
        return self._parts[2]

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Shape of one context; `(0,)` for an unconditional density."""
        return self.model.context_shape

    @property
    def sites(self) -> Sites | None:
        """Names and shapes of the values in one event; None if the density was learned without names."""
        return self.model.scaling.sites

    def __repr__(self) -> str:
        own = merge(self._own_arrays, self._own_rest)
        return described(self, merge(self._arrays, self._rest), own if self.is_amortized else None)

    # Named values --------------------------------------------------------------------------------

    def pack(self, values: Named) -> Array:
        """Pack named values into an event, shape `(*batch, *event_shape)`. The batch axes of the values broadcast.

        Args:
            values: the value of each site by name, in a dict, a DataFrame, an arviz posterior or an xarray object.

        Raises:
            TypeError: if the density was learned without names.
            ValueError: if a site is missing or unknown, or a value has the wrong shape.
        """
        sites = self._named("pack", "jax.numpy.stack(list(values.values()), axis=-1)")
        return sites.pack(self._called("pack"), values)

    def unpack(self, event: ArrayLike) -> dict[str, Array]:
        """Unpack an event, shape `(*batch, *event_shape)`, into named values, each of shape `(*batch, *shape)`.

        Raises:
            TypeError: if the density was learned without names, or the event does not consist of real numbers.
            ValueError: if the event has the wrong shape.
        """
        sites = self._named("unpack", "{'event': event}")
        return sites.unpack(event_array(self._called("unpack"), "event", event, self.event_shape, sites))

    # Variants ------------------------------------------------------------------------------------

    def given(self, context: ArrayLike | Named) -> Self:
        """Return the density conditioned on `context`.

        Args:
            context: shape `(*batch_shape, *context_shape)`; or a dict of such arrays if the density was learned with names. The
                batch axes of the arrays broadcast against each other.

        Raises:
            TypeError, ValueError: if `context` does not fit the model.
        """
        # The constructor warns too, but numpyro calls it later. Warning here names the line of the caller.
        warn_if_far(self.model, flat_context(type(self).__name__, self.model, context))
        return self._variant(context=context)

    def with_divergence(self, divergence: AbstractDivergence) -> Self:
        """Return the same density with another divergence of its velocity, for example `ExactDivergence()`.

        Raises:
            TypeError: if `divergence` has the wrong type, or `log_prob` does not use a divergence.
        """
        if self.is_amortized:
            raise TypeError(
                f"{self._called('with_divergence')} expected a density whose `log_prob` integrates a divergence; the `log_prob` "
                f"of {type(self).__name__} is a single pass of a network. Its flow has a divergence. Fix: density = density.flow"
            )
        return self._variant(divergence=divergence)

    def with_solver(self, solver: AbstractSolver) -> Self:
        """Return the same density with another ODE solver, for example `FixedStep(steps=32)`.

        Raises:
            TypeError: if `solver` has the wrong type.
        """
        return self._variant(solver=solver)

    def _variant(self, **changes: Any) -> Self:
        self._check_one("given", "context")
        again = object.__new__(type(self))
        AbstractLearnedDensity.__init__(again, **(self.arguments | changes), own=self._own)
        return again

    # numpyro's interface -------------------------------------------------------------------------

    @constraints.dependent_property(is_discrete=False)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        support = self.model.scaling.support
        if support is constraints.real and self.event_dim <= 2:
            # Use the constraints of numpyro's own distributions, which mixtures compare by identity.
            return (constraints.real, constraints.real_vector, constraints.real_matrix)[self.event_dim]
        more = self.event_dim - support.event_dim
        return constraints.independent(support, more) if more else support

    @property
    def has_rsample(self) -> bool:
        return True

    def get_args(self) -> dict[str, Any]:
        return {} if self.context is None else {"context": self.context}

    def sample(self, key: Key | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.from_base(self._draw_base("sample", key, sample_shape))

    def sample_diffusion(
        self, key: Key, sample_shape: tuple[int, ...] = (), *, steps: int = 64, strength: float = 1.0
    ) -> Array:
        r"""Draw samples with the reverse diffusion instead of the ODE, which corrects errors of the velocity along the way.

        Their distribution is not exactly that of `log_prob`, which is the distribution of the ODE. The two agree as far as the
        model has learned its data. The diffusion stops at the last time of the model: at the data, or at the smallest noise level
        of its training.

        Args:
            key: JAX PRNG key.
            sample_shape: leading axes.
            steps: number of solver steps.
            strength: amount of noise that is added and removed along the way; 0 gives the ODE.

        Returns:
            Events, shape `(*sample_shape, *batch_shape, *event_shape)`.

        Raises:
            TypeError: if the model does not follow a Gaussian probability path, or `key` is not a key.
            ValueError: if `steps` or `strength` is out of range, or a context is missing.
        """
        caller, model = self._called("sample_diffusion"), self.model
        if not follows_path(model):
            raise TypeError(
                f"{caller} expected a model that follows a Gaussian path, where its score is known; got {type(model).__name__}. "
                "Fix: density.sample(key)"
            )
        check_key(caller, key)
        steps = check_count(caller, "steps", steps, fix=64)
        strength = check_number(caller, "strength", strength, 0.0, fix=1.0, ends="low")
        start, way = jr.split(key)
        noise = self._draw_base("sample_diffusion", start, sample_shape)
        return batching.diffused(self._parts, way, noise, self._given("sample_diffusion", "key"), steps, strength)

    def _validate_sample(self, value: ArrayLike) -> Any:
        return super()._validate_sample(off_edges(self.support, value))

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats, with the shape `value.shape[:-event_dim]` broadcast with `batch_shape`."""
        value, context = self._checked("log_prob", value)
        if intermediates:
            return intermediates[0]
        model = self.model
        return batching.log_probs(self.state_log_prob, (model.scaling, model.context_scaling), value, context)

    # The change of variables ----------------------------------------------------------------------

    @property
    def base(self) -> dist.Distribution:
        """Standard normal from which the flow starts, with event shape `(dim,)` and the batch shape of this density."""
        return dist.Normal(0.0, 1.0).expand((*self.batch_shape, self.model.dim)).to_event(1)

    def from_base(self, noise: Float[Array, "*batch dim"]) -> Array:
        """Map `noise` to events with the flow, shape `(*batch, *event_shape)`."""
        context, dim = self._given("from_base", "noise"), self.model.dim
        caller = self._called("from_base")
        noise = real_jax_array(caller, "noise", noise, "noise = density.base.sample(key)")
        if noise.shape[-1:] != (dim,):
            raise ValueError(
                f"{caller} expected `noise` with shape (..., {dim}); got {noise.shape}. "
                f"Fix: {reshaping('noise', noise.shape, (dim,))}"
            )
        return batching.events(self._parts, noise, context)

    def to_base(self, value: ArrayLike) -> Array:
        """Map events `value` back to noise with the inverse of the flow, shape `(*batch, dim)`."""
        return batching.noises(self._parts, *self._checked("to_base", value))

    # Checks --------------------------------------------------------------------------------------

    def _called(self, method: str) -> str:
        return f"{type(self).__name__}.{method}"

    def _checked(self, method: str, value: ArrayLike) -> tuple[Array, Array]:
        """Return events as an array of the right shape, and flat contexts."""
        context = self._given(method, "value")
        # The sites are only used in the error message for named values in place of an event.
        sites = self.sites if hasattr(value, "keys") else None
        return event_array(self._called(method), "value", value, self.event_shape, sites), context

    def _given(self, method: str, argument: str) -> Array:
        """Return flat contexts; `argument` is the argument of `method`, for the fix in the error about a stack."""
        self._check_one(method, argument)
        if self.context is None:
            raise ValueError(
                f"{self._called(method)} expected a context of shape {self.context_shape}; this conditional density has not "
                "been given one. Fix: density = density.given(context)"
            )
        return in_session(self.context)

    def _check_one(self, method: str, argument: str) -> None:
        axes = max(copied_axes(self._arrays, self._rest), copied_axes(self._own_arrays, self._own_rest))
        if axes > 0 and not self._is_one:
            raise ValueError(
                f"{self._called(method)} expected one density; got a stack of them, whose arrays have a leading axis, as after "
                f"jax.vmap or jax.tree.map. Fix: jax.vmap(lambda one: one.{method}({argument}))(density)"
            )

    def _named(self, method: str, fix: str) -> Sites:
        if self.sites is None:
            raise TypeError(
                f"{self._called(method)} expected a density of named values; this one was learned from an array. Fix: {fix}"
            )
        return self.sites

    def _draw_base(self, method: str, key: Any, sample_shape: tuple[int, ...]) -> Array:
        caller = self._called(method)
        check_key(caller, key)
        context = self._given(method, "key")
        leading = check_sample_shape(caller, sample_shape)
        return self._draw_noise(key, (*leading, *context.shape[:-1]))


def exact_density(density: AbstractLearnedDensity) -> AbstractLearnedDensity:
    """Return the density without approximations: with the exact divergence, and with its flow if it is amortized."""
    return (density.flow if density.is_amortized else density).with_divergence(ExactDivergence())
