r"""ODE solvers, and functions that solve a probability flow for events, noise and log densities.

Along $dy/ds = F$ the log density changes at the rate $-\nabla\cdot F$, so

$$\log p(x) = \log N(y_0; 0, I) - \int \nabla\cdot F\,ds + \log|\det\partial y/\partial x| .$$

Each function takes ONE event, state or noise vector, one context, and a solver. The functions are differentiable in all
arguments; with `Adaptive`, only in reverse mode and only once.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax

from ._checks import check_count, check_kind, check_number
from ._display import shown
from ._registry import savable
from ._typing import Array, Context, Float, Key, Scalar, State, Times
from .divergence.interface import AbstractDivergence
from .models.flows import AbstractGaussianFlow, AbstractProbabilityFlow, standard_normal_log_prob

Field: TypeAlias = Callable[[Any, Any], Any]
"""A function of time and state that returns the derivative of the state."""
MAX_STEPS = 1_000_000
"""Maximum number of steps of a solver; a larger number is a typing error or comes from a malicious file."""


class AbstractSolver(eqx.Module):
    """Abstract base class for ODE solvers."""

    def __repr__(self) -> str:
        return shown(self)

    @abstractmethod
    def integrate(self, field: Field, times: Callable[[int], Times], start: Any, reverse: bool) -> Any:
        """Solve d(state)/ds = field(s, state) from the initial state `start`.

        Args:
            field: derivative of the state.
            times: function from a number of steps to the endpoints of the steps.
            start: initial state, a pytree of arrays.
            reverse: whether to solve from the last time to the first.

        Returns:
            The final state.
        """


@savable
class FixedStep(AbstractSolver):
    """Solver with a fixed number of steps on the model's own grid; the default solver.

    The result does not depend on the other events of a batch. It is a smooth function of the event, as a Hamiltonian sampler
    requires. The default method, the third-order method of Bogacki and Shampine, evaluates the field three times per step.

    Args:
        steps: number of steps.
        method: a diffrax explicit Runge-Kutta solver, whose tableau is used.

    Raises:
        TypeError: if `method` is not a `diffrax.AbstractERK`.
        ValueError: if `steps` is not an integer from 1 to a million.

    Examples:
        >>> finer = density.with_solver(fd.FixedStep(steps=32))
        >>> finer.log_prob(data[:5])
    """

    steps: int = eqx.field(static=True, default=16)
    method: diffrax.AbstractERK = diffrax.Bosh3()

    def __check_init__(self) -> None:
        check_count("FixedStep", "steps", self.steps, most=MAX_STEPS, fix=16)
        check_kind("FixedStep", "method", self.method, diffrax.AbstractERK, "method=diffrax.Bosh3()")

    def integrate(self, field: Field, times: Callable[[int], Times], start: Any, reverse: bool) -> Any:
        grid = times(self.steps)
        if reverse:
            grid = grid[::-1]
        (end, _), _ = jax.lax.scan(self.step(field), (start, field(grid[0], start)), (grid[:-1], grid[1:]))
        return end

    def step(self, field: Field) -> Callable[[tuple[Any, Any], tuple[Scalar, Scalar]], tuple[tuple[Any, Any], None]]:
        """Return the function of one step for `scan`: it maps a state, its slope and the ends of the step to the next pair."""
        tableau = self.method.tableau
        assert isinstance(tableau, diffrax.ButcherTableau), "an explicit method has one tableau"

        # diffrax's own `step` uses a loop over the stages, which is slower here and has no forward-mode derivative.
        def step(carry: tuple[Any, Any], ends: tuple[Scalar, Scalar]) -> tuple[tuple[Any, Any], None]:
            state, slope = carry
            first, last = ends
            slopes, stage = [slope], state
            for weights, fraction in zip(tableau.a_lower, tableau.c, strict=True):
                stage = _advance(state, last - first, weights, slopes)
                slopes.append(field(first + float(fraction) * (last - first), stage))
            if tableau.fsal:
                return (stage, slopes[-1]), None
            end = _advance(state, last - first, tableau.b_sol, slopes)
            return (end, field(last, end)), None

        return step


@savable
class Adaptive(AbstractSolver):
    """Solver with step sizes chosen by an error estimate, for single evaluations to a given tolerance.

    It supports first-order derivatives in reverse mode only. `FixedStep` supports derivatives of any order in both modes.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in whitened units and nats.
        method: a diffrax solver with an error estimate.
        max_steps: maximum number of steps; diffrax raises an error beyond it.

    Raises:
        TypeError: if `method` is not a `diffrax.AbstractAdaptiveSolver`.
        ValueError: if a tolerance is below 0, both are 0, or `max_steps` is not an integer from 1 to a million.

    Examples:
        >>> adaptive = density.with_solver(fd.solvers.Adaptive(rtol=1e-4, atol=1e-4))
        >>> adaptive.log_prob(data[0])
    """

    rtol: float = eqx.field(static=True, default=1e-5)
    atol: float = eqx.field(static=True, default=1e-5)
    method: diffrax.AbstractAdaptiveSolver = diffrax.Tsit5()
    max_steps: int = eqx.field(static=True, default=4096)

    def __check_init__(self) -> None:
        tolerances = [
            check_number("Adaptive", name, value, 0.0, fix=1e-5, ends="low")
            for name, value in (("rtol", self.rtol), ("atol", self.atol))
        ]
        if not any(tolerances):
            raise ValueError("Adaptive expected `rtol` or `atol` above 0; got 0 for both. Fix: rtol=1e-5")
        check_kind("Adaptive", "method", self.method, diffrax.AbstractAdaptiveSolver, "method=diffrax.Tsit5()")
        check_count("Adaptive", "max_steps", self.max_steps, most=MAX_STEPS, fix=4096)

    def integrate(self, field: Field, times: Callable[[int], Times], start: Any, reverse: bool) -> Any:
        first, last = times(1)[::-1] if reverse else times(1)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda s, state, args: field(s, state)),
            self.method,
            t0=first,
            t1=last,
            dt0=None,
            y0=start,
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            max_steps=self.max_steps,
        )
        assert solution.ys is not None
        return jax.tree.map(lambda leaf: leaf[-1], solution.ys)


def event_from_noise(
    model: AbstractProbabilityFlow, noise: State, context: Float[Array, "*context"], solver: AbstractSolver
) -> Float[Array, "*event"]:
    """Solve for the event to which the flow carries `noise`, shape `(dim,)`."""
    encoded, _ = model.context_scaling.whiten(context)
    return model.scaling.unwhiten(state_from_noise(model, noise, encoded, solver))


def state_from_noise(model: AbstractProbabilityFlow, noise: State, context: Context, solver: AbstractSolver) -> State:
    """Solve for the whitened state to which the flow carries `noise`, shape `(dim,)`, given a whitened context."""
    return solver.integrate(lambda s, y: model.velocity(s, y, context), model.times, noise, reverse=False)


def noise_from_event(
    model: AbstractProbabilityFlow,
    event: Float[Array, "*event"],
    context: Float[Array, "*context"],
    solver: AbstractSolver,
) -> State:
    """Solve for the standard-normal noise, shape `(dim,)`, that the flow carries to `event`."""
    encoded, _ = model.context_scaling.whiten(context)
    state, _ = model.scaling.whiten(event)
    return noise_from_state(model, state, encoded, solver)


def noise_from_state(model: AbstractProbabilityFlow, state: State, context: Context, solver: AbstractSolver) -> State:
    """Solve for the noise, shape `(dim,)`, that the flow carries to a whitened state, given a whitened context."""
    return solver.integrate(lambda s, y: model.velocity(s, y, context), model.times, state, reverse=True)


def log_prob(
    model: AbstractProbabilityFlow,
    divergence: AbstractDivergence,
    event: Float[Array, "*event"],
    context: Float[Array, "*context"],
    solver: AbstractSolver,
) -> Scalar:
    """Log density of an event, in nats per unit of the user's coordinates."""
    encoded, _ = model.context_scaling.whiten(context)
    state, log_det = model.scaling.whiten(event)
    return state_log_prob(model, divergence, state, encoded, solver) + log_det


def state_log_prob(
    model: AbstractProbabilityFlow,
    divergence: AbstractDivergence,
    state: State,
    context: Context,
    solver: AbstractSolver,
) -> Scalar:
    """Log density of a whitened state given a whitened context, in nats per unit of whitened coordinates."""
    noise, change = solver.integrate(
        _augmented(model, divergence, context), model.times, (state, jnp.zeros(())), reverse=True
    )
    # The ODE is solved in reverse, so `change` is minus the integral of the divergence from noise to data.
    return standard_normal_log_prob(noise) + change


class SolvedLogProb(eqx.Module):
    """Log density of a whitened state given a whitened context, in nats, by solving the ODE.

    Args:
        model: the probability flow.
        divergence: the divergence of its velocity.
        solver: the ODE solver.
    """

    model: AbstractProbabilityFlow
    divergence: AbstractDivergence
    solver: AbstractSolver

    def __call__(self, state: State, context: Context) -> Scalar:
        return state_log_prob(self.model, self.divergence, state, context, self.solver)


def event_and_log_prob_from_noise(
    model: AbstractProbabilityFlow,
    divergence: AbstractDivergence,
    noise: State,
    context: Float[Array, "*context"],
    solver: AbstractSolver,
) -> tuple[Float[Array, "*event"], Scalar]:
    """Solve for the event to which the flow carries `noise`, and for its log density in nats, in one solve."""
    encoded, _ = model.context_scaling.whiten(context)
    state, change = solver.integrate(
        _augmented(model, divergence, encoded), model.times, (noise, jnp.zeros(())), reverse=False
    )
    event = model.scaling.unwhiten(state)
    _, log_det = model.scaling.whiten(event)
    return event, standard_normal_log_prob(noise) - change + log_det


def event_from_diffusion(
    model: AbstractGaussianFlow, key: Key, noise: State, context: Float[Array, "*context"], steps: int, strength: float
) -> Float[Array, "*event"]:
    r"""Sample an event with the reverse diffusion instead of the ODE, from initial `noise` and fresh noise in each step.

    The SDE $dy = (F - \kappa\,\hat e)\,d\phi + \sqrt{2\kappa\cos\phi}\,dw$ has the same marginal distribution at every angle as
    the ODE $dy = F\,d\phi$, because $-\hat e = \cos\phi\,\nabla\log p_\phi$ (Song et al. 2021, arXiv 2011.13456). Song et al.
    use the noise coefficient $\sqrt{2\cot\phi}$; with the cosine, all coefficients are bounded. The SDE ends at the last of the
    model's times.

    Args:
        model: a model that follows a Gaussian path.
        key: JAX PRNG key for the noise of the steps.
        noise: initial state, shape `(dim,)`.
        context: one context in the user's units.
        steps: number of steps of the solver.
        strength: $\kappa$; 0 gives the ODE.
    """
    encoded, _ = model.context_scaling.whiten(context)
    grid = model.times(steps)
    brownian = diffrax.UnsafeBrownianPath((model.dim,), key, levy_area=diffrax.SpaceTimeLevyArea)
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(
            lambda s, y, args: (
                model.velocity(jnp.asarray(s), y, encoded) - strength * model.noise(jnp.asarray(s), y, encoded)
            ),
        ),
        diffrax.ControlTerm(
            # The cosine is zero at the data, where it may be slightly negative in float32.
            lambda s, y, args: lineax.DiagonalLinearOperator(
                jnp.full(model.dim, jnp.sqrt(2.0 * strength * jnp.maximum(jnp.cos(s), 0.0)))
            ),
            brownian,
        ),
    )
    solution = diffrax.diffeqsolve(
        terms,
        diffrax.ShARK(),
        t0=grid[0],
        t1=grid[-1],
        dt0=None,
        y0=noise,
        stepsize_controller=diffrax.StepTo(ts=grid),
        adjoint=diffrax.DirectAdjoint(),
        max_steps=steps,
    )
    assert solution.ys is not None
    return model.scaling.unwhiten(solution.ys[-1])


def trajectory(
    model: AbstractProbabilityFlow, nodes: Times, start: State, context: Context, solver: AbstractSolver
) -> Float[Array, "nodes dim"]:
    """Solve for the whitened states at the times `nodes`, given a whitened context; `start` is the state at the first node."""

    def hop(state: State, ends: Times) -> tuple[State, State]:
        end = solver.integrate(
            lambda s, y: model.velocity(s, y, context),
            lambda steps: jnp.linspace(ends[0], ends[1], steps + 1),
            state,
            reverse=False,
        )
        return end, end

    _, states = jax.lax.scan(hop, start, jnp.stack([nodes[:-1], nodes[1:]], axis=1))
    return jnp.concatenate([start[None], states])


def _advance(state: Any, width: Scalar, weights: Iterable[float], slopes: list[Any]) -> Any:
    """Advance a state by `width` times a weighted sum of slopes."""
    pairs = [(float(weight), slope) for weight, slope in zip(weights, slopes, strict=True) if weight != 0.0]
    return jax.tree.map(
        lambda leaf, *each: leaf + width * sum(weight * one for (weight, _), one in zip(pairs, each, strict=True)),
        state,
        *(slope for _, slope in pairs),
    )


def _augmented(model: AbstractProbabilityFlow, divergence: AbstractDivergence, context: Context) -> Field:
    """Return the field of the pair (state, integral of the divergence)."""
    return lambda s, pair: divergence(model, s, pair[0], context)
