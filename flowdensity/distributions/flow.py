"""A probability flow as a numpyro distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from .._arrays import Fixes, is_a, is_complex
from .._checks import (
    check_count,
    check_key,
    check_kind,
    check_number,
    check_sample_shape,
    real_array,
    real_jax_array,
    reshaping,
)
from .._pytree import copied_axes, in_session, merge, split, without_copies
from .._registry import Kind, register
from .._typing import Array, ArrayLike, Float, Key
from ..data.containers import read
from ..data.interior import off_edges
from ..data.sites import Sites
from ..data.tables import Named
from ..divergence.exact import ExactDivergence
from ..divergence.interface import AbstractDivergence
from ..models.flows import AbstractProbabilityFlow, follows_path
from ..solving import AbstractSolver, FixedStep
from . import batching
from .reach import warn_if_far
from .scanned import is_one


class FlowDensity(dist.Distribution):
    r"""The density of a probability flow, for `numpyro.sample`.

    `log_prob` solves the flow from the event back to its standard-normal noise and integrates the divergence on the way;
    `sample` solves it forwards. Both are deterministic given their arguments and differentiable in the event, the context
    and the weights.

    Args:
        model: the probability flow.
        context: what to condition on, shape `(*batch_shape, *context_shape)`, or a dict of such arrays where it was learned
            with names; None leaves a conditional density without its context, to be `given` later.
        divergence: how the divergence is had; `ExactDivergence()` by default.
        solver: how the ODE is solved; `FixedStep()` by default.
        validate_args: as in numpyro.

    A `context` that is not traced and lies far outside those of the fit is warned about, once for each model: it is seen as at
    their edge.

    Raises:
        TypeError, ValueError: if `context` does not fit the model.
    """

    arg_constraints = {"context": constraints.real_vector}
    reparametrized_params = ["context"]
    pytree_data_fields = ("_arrays", "context")
    pytree_aux_fields = ("_rest",)

    def __init__(
        self,
        model: AbstractProbabilityFlow,
        context: ArrayLike | Named | None = None,
        *,
        divergence: AbstractDivergence | None = None,
        solver: AbstractSolver | None = None,
        validate_args: bool | None = None,
    ):
        divergence = ExactDivergence() if divergence is None else divergence
        solver = FixedStep() if solver is None else solver
        whose = "model" if isinstance(model, FlowDensity) else "density"
        for name, value, kind, fix in (
            ("model", model, AbstractProbabilityFlow, f"{whose}.model"),
            ("divergence", divergence, AbstractDivergence, "fd.ExactDivergence()"),
            ("solver", solver, AbstractSolver, "fd.FixedStep(steps=16)"),
        ):
            check_kind("FlowDensity", name, value, kind, f"{name}={fix}")
        if np.ndim(model.scaling.location) > 1:
            raise ValueError(
                f"FlowDensity expected one `model`; got a stack of {len(model.scaling.location)}, whose arrays have a leading "
                "axis, as after jax.vmap or jax.tree.map. jax.vmap makes a stack of densities, and is wanted again to use it. "
                "Fix: jax.vmap(fd.FlowDensity)(model)"
            )
        self._arrays, self._rest = split((model, divergence, solver))
        self.context = _flat_context(model, context)
        warn_if_far(model, self.context)
        batch_shape = () if self.context is None else self.context.shape[:-1]
        super().__init__(batch_shape, model.event_shape, validate_args=validate_args)

    # The parts -----------------------------------------------------------------------------------

    @property
    def _parts(self) -> tuple[AbstractProbabilityFlow, AbstractDivergence, AbstractSolver]:
        parts = in_session(merge(self._arrays, self._rest))
        # numpyro's scan makes a copy of everything for each step, and these become batch axes. A model has no batch axes of its
        # own, and what a step does not sample is the same in all steps.
        return without_copies(parts, self._copied_axes) if is_one(self) else parts

    @property
    def _copied_axes(self) -> int:
        """Number of leading axes that copies of the parts have."""
        return copied_axes(self._arrays, self._rest)

    @property
    def model(self) -> AbstractProbabilityFlow:
        """The probability flow."""
        return self._parts[0]

    @property
    def divergence(self) -> AbstractDivergence:
        """How the divergence is had."""
        return self._parts[1]

    @property
    def solver(self) -> AbstractSolver:
        """How the ODE is solved."""
        return self._parts[2]

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Shape of one context; `(0,)` for an unconditional density."""
        return self.model.context_shape

    @property
    def sites(self) -> Sites | None:
        """Names and shapes of the values that one event is made of; None where it was learned without names."""
        return self.model.scaling.sites

    def pack(self, values: Named) -> Array:
        """The event that is made of named values, shape `(*batch, *event_shape)`; their batch axes broadcast.

        Args:
            values: a value of each site by name, in a dict, a DataFrame, an arviz posterior or an xarray object.

        Raises:
            TypeError: if the density was learned without names.
            ValueError: if a site is missing, too many, or of another shape.
        """
        return self._named("pack", "jax.numpy.stack(list(values.values()), axis=-1)").pack("FlowDensity.pack", values)

    def unpack(self, event: ArrayLike) -> dict[str, Array]:
        """The named values that an event, shape `(*batch, *event_shape)`, is made of, each `(*batch, *shape)`.

        Raises:
            TypeError: if the density was learned without names, or the event is not made of real numbers.
            ValueError: if the event has another shape.
        """
        return self._named("unpack", "{'event': event}").unpack(
            self._checked_event("FlowDensity.unpack", event, "event")
        )

    # Variants ------------------------------------------------------------------------------------

    def given(self, context: ArrayLike | Named) -> "FlowDensity":
        """The density conditional on `context`.

        Args:
            context: shape `(*batch_shape, *context_shape)`, batch axes leading; where it was learned with names, a dict of
                such arrays, whose batch axes broadcast against each other.

        Raises:
            TypeError, ValueError: if it does not fit the model.
        """
        # Here, and not in the constructor alone, which numpyro calls in the user's place.
        warn_if_far(self.model, _flat_context(self.model, context))
        return self._variant(context=context)

    def with_divergence(self, divergence: AbstractDivergence) -> "FlowDensity":
        """The same density with its divergence had another way, for example `ExactDivergence()`."""
        return self._variant(divergence=divergence)

    def with_solver(self, solver: AbstractSolver) -> "FlowDensity":
        """The same density with its ODE solved another way, for example `FixedStep(steps=32)`."""
        return self._variant(solver=solver)

    def _variant(self, **changes: Any) -> "FlowDensity":
        self._check_one("FlowDensity.given", "context")
        model, divergence, solver = self._parts
        context = self.context
        if context is not None and context.shape[-1] == 0:
            context = None
        elif context is not None:
            context = context.reshape(*context.shape[:-1], *model.context_shape)
        unchanged = {"model": model, "context": context, "divergence": divergence, "solver": solver}
        return FlowDensity(**(unchanged | changes), validate_args=self.__dict__.get("_validate_args"))

    # numpyro's interface -------------------------------------------------------------------------

    @constraints.dependent_property(is_discrete=False)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        support = self.model.scaling.support
        if support is constraints.real and self.event_dim <= 2:
            # By the names that numpyro's own distributions have for them, which mixtures compare.
            return (constraints.real, constraints.real_vector, constraints.real_matrix)[self.event_dim]
        more = self.event_dim - support.event_dim
        return constraints.independent(support, more) if more else support

    @property
    def has_rsample(self) -> bool:
        return True

    def get_args(self) -> dict[str, Any]:
        return {} if self.context is None else {"context": self.context}

    def sample(self, key: Key | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.from_base(self._draw_base("FlowDensity.sample", key, sample_shape))

    def sample_with_intermediates(self, key: Key | None, sample_shape: tuple[int, ...] = ()) -> tuple[Array, list[Any]]:
        """A sample, and its log density from the same solve, which `log_prob` then returns without a second one."""
        noise = self._draw_base("FlowDensity.sample_with_intermediates", key, sample_shape)
        event, log_density = batching.events_and_log_probs(self._parts, noise, self._given("FlowDensity.sample", "key"))
        return event, [log_density]

    def sample_diffusion(
        self, key: Key, sample_shape: tuple[int, ...] = (), *, steps: int = 64, strength: float = 1.0
    ) -> Array:
        r"""Samples by the reverse diffusion instead of the ODE, which takes errors of the velocity back on its way.

        Their law is not exactly that of `log_prob`, which is the law of the ODE; the two agree to the extent that the model has
        learned its data. It stops where the model's times do: at the data, or at the least noise it was trained with.

        Args:
            key: JAX PRNG key.
            sample_shape: leading axes.
            steps: steps of the solver.
            strength: how much noise is added and taken back on the way; 0 is the ODE.

        Returns:
            Events, shape `(*sample_shape, *batch_shape, *event_shape)`.

        Raises:
            TypeError: if the model follows no Gaussian path, or `key` no key.
            ValueError: if `steps` or `strength` is out of range, or a context is missing.
        """
        model = self.model
        if not follows_path(model):
            raise TypeError(
                f"FlowDensity.sample_diffusion expected a model that follows a Gaussian path, since it has a score; "
                f"got {type(model).__name__}. Fix: density.sample(key)"
            )
        check_key("FlowDensity.sample_diffusion", key)
        steps = check_count("FlowDensity.sample_diffusion", "steps", steps, fix=64)
        strength = check_number("FlowDensity.sample_diffusion", "strength", strength, 0.0, fix=1.0, ends="low")
        start, way = jr.split(key)
        noise = self._draw_base("FlowDensity.sample_diffusion", start, sample_shape)
        return batching.diffused(
            self._parts, way, noise, self._given("FlowDensity.sample_diffusion", "key"), steps, strength
        )

    def _validate_sample(self, value: ArrayLike) -> Any:
        return super()._validate_sample(off_edges(self.support, value))

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats, shape `value.shape[:-event_dim]` broadcast with `batch_shape`."""
        value, context = self.checked("FlowDensity.log_prob", value)
        if intermediates:
            return intermediates[0]
        return batching.log_probs(self._parts, value, context)

    # The change of variables ----------------------------------------------------------------------

    @property
    def base(self) -> dist.Distribution:
        """The standard normal that the flow starts from: event shape `(dim,)`, this density's batch shape."""
        return dist.Normal(0.0, 1.0).expand((*self.batch_shape, self.model.dim)).to_event(1)

    def from_base(self, noise: Float[Array, "*batch dim"]) -> Array:
        """Events that the flow carries `noise` to, shape `(*batch, *event_shape)`."""
        context = self._given("FlowDensity.from_base", "noise")
        noise = real_jax_array("FlowDensity.from_base", "noise", noise, "noise = density.base.sample(key)")
        if noise.shape[-1:] != (self.model.dim,):
            raise ValueError(
                f"FlowDensity.from_base expected `noise` with shape (..., {self.model.dim}); got {noise.shape}. "
                f"Fix: {reshaping('noise', noise.shape, (self.model.dim,))}"
            )
        return batching.events(self._parts, noise, context)

    def to_base(self, value: ArrayLike) -> Array:
        """Noise that the flow carries to the events `value`, shape `(*batch, dim)`."""
        return batching.noises(self._parts, *self.checked("FlowDensity.to_base", value))

    # Checks --------------------------------------------------------------------------------------

    def checked(self, caller: str, value: ArrayLike) -> tuple[Array, Array]:
        """Events as an array of the right shape, and flat contexts, for a method that needs both.

        Raises:
            TypeError: in the name of `caller`, if they are no real numbers.
            ValueError: likewise, if the shape is not that of events or a context is missing.
        """
        context = self._given(caller, "value")
        return self._checked_event(caller, value), context

    def _given(self, caller: str, argument: str) -> Array:
        self._check_one(caller, argument)
        if self.context is None:
            raise ValueError(
                f"{caller} expected a context of shape {self.context_shape}; this conditional density has not "
                "been given one. Fix: density = density.given(context)"
            )
        return in_session(self.context)

    def _check_one(self, caller: str, argument: str) -> None:
        if self._copied_axes > 0 and not is_one(self):
            raise ValueError(
                f"{caller} expected one density; got a stack of them, whose arrays have a leading axis, as after jax.vmap or "
                f"jax.tree.map. Fix: jax.vmap(lambda one: one.{caller.rpartition('.')[2]}({argument}))(density)"
            )

    def _named(self, caller: str, fix: str) -> Sites:
        if self.sites is None:
            raise TypeError(
                f"FlowDensity.{caller} expected a density of named values; this one was learned from an array. Fix: {fix}"
            )
        return self.sites

    def _draw_base(self, caller: str, key: Any, sample_shape: tuple[int, ...]) -> Array:
        check_key(caller, key)
        context = self._given(caller, "key")
        leading = check_sample_shape(caller, sample_shape)
        return jr.normal(key, (*leading, *context.shape[:-1], self.model.dim))

    def _checked_event(self, caller: str, value: ArrayLike | Named, name: str = "value") -> Array:
        owner = "density.flow" if caller.startswith("Amortized") else "density"
        value = real_jax_array(caller, name, value, f"{name} = {self._event_line(value, name, owner)}")
        if value.shape[value.ndim - self.event_dim :] != self.event_shape:
            raise ValueError(
                f"{caller} expected `{name}` with shape (..., {', '.join(map(str, self.event_shape))}); got "
                f"{value.shape}. Fix: {reshaping(name, value.shape, self.event_shape)}"
            )
        return value

    def _event_line(self, value: Any, name: str, owner: str) -> str:
        """Code for an array of what are no real numbers: what `pack` makes of named values, or an event."""
        if is_complex(value):
            return f"jax.numpy.real({name})"
        if not hasattr(value, "keys"):
            return f"{owner}.sample(jax.random.key(0))"
        if self.sites is not None:
            given = list(map(str, value.keys()))
            complete = set(given) == set(self.sites.names)
            return f"{owner}.pack({name if complete else self.sites.code_of_all(name, given)})"
        return f"jax.numpy.stack([jax.numpy.asarray({name}[column]) for column in {name}], axis=-1)"


def _flat_context(model: AbstractProbabilityFlow, context: ArrayLike | Named | None) -> Any:
    """`context` with its own axes flattened into one, empty for an unconditional model; None where it is missing."""
    size, shape = model.context_scaling.dim, model.context_shape
    if context is None:
        return jnp.zeros((0,)) if size == 0 else None
    sites, handed = model.context_scaling.sites, read("FlowDensity", "context", context, rows=False)
    if size == 0:
        names = None if handed.columns is None else list(handed.columns)
        got = f"one of shape {np.shape(handed.array)}" if names is None else f"a {type(context).__name__} with {names}"
        raise ValueError(
            "FlowDensity expected no `context`, since this density was learned without one; got "
            f"{got}. Fix: context = None"
        )
    if sites is not None and handed.columns is not None:
        context = sites.pack("FlowDensity", handed.columns, "context")
    elif handed.columns is not None and handed.array is None:
        raise TypeError(
            f"FlowDensity expected `context` as an array of shape (*batch_shape, {', '.join(map(str, shape))}), since this "
            f"density was learned without names; got the names {list(handed.columns)}. Fix: context = {_without_names(context)}"
        )
    else:
        context = handed.array
    line = f"context = {'jax.numpy.real(context)' if is_complex(context) else f'jax.numpy.zeros({shape})'}"
    if isinstance(context, np.ndarray):
        array = real_array("FlowDensity", "context", context, Fixes(ordinary=line))
    else:
        array = real_jax_array("FlowDensity", "context", context, line)
    leading = array.ndim - len(shape)
    if leading < 0 or array.shape[leading:] != shape:
        raise ValueError(
            f"FlowDensity expected `context` with shape (*batch_shape, {', '.join(map(str, shape))}); got {array.shape}. "
            f"Fix: {reshaping('context', array.shape, shape)}"
        )
    flat = array.reshape((*array.shape[:leading], size))
    if isinstance(flat, np.ndarray):
        # Under jit it stays a constant, which numpyro can validate.
        with jax.ensure_compile_time_eval():
            return jnp.asarray(flat)
    return flat


def _without_names(context: Any) -> str:
    """A line of code for the array that named contexts make."""
    if is_a(context, "pandas", "DataFrame"):
        return "context.to_numpy(float)"
    return "numpy.stack([context[name] for name in context], axis=-1)"


def _parts(density: FlowDensity) -> dict[str, Any]:
    """What files hold of a density."""
    model, context = density.model, density.context
    # A density holds its context flat, and takes it in its own shape.
    if context is not None:
        context = context.reshape(*context.shape[:-1], *model.context_shape) if context.shape[-1] else None
    return {
        "model": model,
        "context": context,
        "divergence": density.divergence,
        "solver": density.solver,
        "validate_args": density.__dict__.get("_validate_args"),
    }


register(
    "FlowDensity",
    Kind(
        FlowDensity,
        {
            "model": AbstractProbabilityFlow,
            "context": Array | None,
            "divergence": AbstractDivergence,
            "solver": AbstractSolver,
            "validate_args": bool | None,
        },
        FlowDensity,
        _parts,
    ),
)
