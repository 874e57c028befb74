"""Density under diagnosis, with the samples, points and errors of `log_prob` that several checks use."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._typing import Array, Context, ContextRows, Float, Key, Rows, Scalar, State
from ..data.tables import Sample
from ..distributions.flow import FlowDensity
from ..distributions.learned import AbstractLearnedDensity, exact_density
from ..divergence.stochastic import HutchinsonDivergence
from ..models.flows import AbstractProbabilityFlow
from ..solving import AbstractSolver, state_from_noise, state_log_prob

MIN_HELD_OUT_ROWS = 100
"""Minimum number of held-out rows for the checks that need them."""
MAX_HELD_OUT_ROWS = 2000
"""Maximum number of held-out rows that checks use."""
MAX_POINTS = 512
"""Number of points at which log densities are compared; half as many above `MAX_CHEAP_DIM` dimensions."""
MAX_CHEAP_DIM = 16
"""Dimension above which only half as many points are compared, since the exact divergence is slow."""
MAX_EXACT_DIM = 64
"""Maximum dimension for the exact divergence. Above it, two independent Hutchinson averages are used."""
NUM_PROBES = 64
"""Number of probes of each Hutchinson average."""
BATCH_SIZE = 256
"""Number of points for which the ODE is solved together."""

LogProb: TypeAlias = Callable[[State, Context], Scalar]


class EstimatedLogProb(eqx.Module):
    """Log density with a Hutchinson average in place of the exact divergence, with separate probes for each state.

    The errors at different states are then independent, and their average converges to zero.
    """

    model: AbstractProbabilityFlow
    solver: AbstractSolver
    key: Key
    probes: int = eqx.field(static=True)

    def __call__(self, state: State, context: Context) -> Scalar:
        number = jax.lax.bitcast_convert_type(jnp.sum(jax.lax.stop_gradient(state)).astype(jnp.float32), jnp.uint32)
        divergence = HutchinsonDivergence(jr.fold_in(self.key, number), self.probes)
        return state_log_prob(self.model, divergence, state, context, self.solver)


@dataclass(frozen=True, eq=False)
class Subject:
    """Density under diagnosis. Everything is in whitened coordinates, and cached properties are computed once.

    Attributes:
        density: the density that the user passed.
        log_prob: its log density.
        flow: its flow without a context, with the flow's own divergence and solver.
        exact_log_probs: the exact log density, or two independent unbiased estimates of it.
        held_out: held-out rows, in random order; empty if there are none.
        contexts: contexts with which samples are drawn.
        key: key of `samples`.

    Examples:
        >>> def is_plane(subject):
        ...     return None if subject.model.dim == 2 else "events of two dimensions are needed"
        >>> class PlaneTails(fd.checks.Tails):
        ...     needs = (is_plane,)
        >>> fd.diagnose(key, density, checks=(PlaneTails(),))["tails.2"].value
    """

    density: AbstractLearnedDensity
    log_prob: LogProb
    flow: FlowDensity
    exact_log_probs: tuple[LogProb, ...]
    held_out: Sample
    contexts: ContextRows
    key: Key

    @property
    def model(self) -> AbstractProbabilityFlow:
        """The probability flow."""
        return self.flow.model

    @property
    def amortized(self) -> bool:
        """Whether the density is amortized, and not the flow itself."""
        return self.density.is_amortized

    @property
    def exact(self) -> bool:
        """Whether `log_prob` is the exact log density."""
        return self.density.flow is self.density and self.density.divergence.is_exact

    @property
    def exact_line(self) -> str:
        """Code for a fix: replace the density by its flow with the exact divergence."""
        whose = "density.flow" if self.amortized else "density"
        return f"Fix: density = {whose}.with_divergence(fd.ExactDivergence())"

    @property
    def has_held_out(self) -> bool:
        """Whether there are enough held-out rows."""
        return len(self.held_out.states) >= MIN_HELD_OUT_ROWS

    @property
    def num_points(self) -> int:
        """Number of points at which log densities are compared."""
        return MAX_POINTS if self.model.dim <= MAX_CHEAP_DIM else MAX_POINTS // 2

    @cached_property
    def samples(self) -> Sample:
        """Samples of the model, as many as `num_points`."""
        return self.draw(self.key, self.num_points)

    @cached_property
    def points(self) -> Sample:
        """Points at which log densities are compared: held-out rows, or samples if there are too few of them."""
        return first_rows(self.held_out, self.num_points) if self.has_held_out else self.samples

    @cached_property
    def log_probs(self) -> np.ndarray:
        """Log densities of the points, shape `(points,)`, nats."""
        return values(self.log_prob, self.points)

    @cached_property
    def errors(self) -> np.ndarray:
        """Errors of the log densities of the points, from each of one or two comparisons, shape `(2, points)`, nats."""
        return self._errors(self.log_probs, self.points)

    @cached_property
    def sample_errors(self) -> np.ndarray:
        """Errors of the log densities of the samples, shape `(2, samples)`, nats."""
        return self._errors(values(self.log_prob, self.samples), self.samples) if self.has_held_out else self.errors

    def draw(self, key: Key, count: int) -> Sample:
        """Draw samples of the model, each with one of the contexts."""
        context_key, noise_key = jr.split(key)
        contexts = self.contexts[jr.randint(context_key, (count,), 0, len(self.contexts))]
        return Sample(jnp.asarray(self.draw_given(noise_key, contexts), float), contexts)

    def draw_given(self, key: Key, contexts: ContextRows) -> np.ndarray:
        """Draw one sample of the model for each whitened context, float64."""
        noise = self.density._draw_noise(key, (len(contexts),))
        return _in_batches(_states, (self.model, self.flow.solver), (noise, contexts), BATCH_SIZE)

    def _errors(self, own: np.ndarray, points: Sample) -> np.ndarray:
        if self.exact:
            return np.broadcast_to(own - own, (2, len(own)))  # NaN where a log density is not finite
        exact = np.stack([values(log_prob, points) for log_prob in self.exact_log_probs])
        return own - np.broadcast_to(exact, (2, len(own)))


def make_subject(
    estimate_key: Key,
    sample_key: Key,
    density: AbstractLearnedDensity,
    held_out: Sample | None,
    contexts: ContextRows,
) -> Subject:
    """Return the subject of a diagnosis.

    Args:
        estimate_key: key of the estimates above `MAX_EXACT_DIM` dimensions.
        sample_key: key of the samples.
        density: a density whose arguments have been checked.
        held_out: held-out rows, whitened; None if there are none.
        contexts: whitened contexts to draw from, shape `(n, context_dim)`, n >= 1.
    """
    model, divergence, solver = density.model, density.divergence, density.solver
    if model.dim <= MAX_EXACT_DIM:
        exact: tuple[LogProb, ...] = (exact_density(density).state_log_prob,)
    elif not (density.is_amortized or density.flow is density):
        raise TypeError(
            f"diagnose expected at most {MAX_EXACT_DIM} dimensions for a density that is derived from a flow, since beyond these "
            f"only the flow's own log density is estimated; got a {type(density).__name__} of {model.dim} dimensions. "
            "Fix: density = density.flow"
        )
    else:
        exact = tuple(EstimatedLogProb(model, solver, key, NUM_PROBES) for key in jr.split(estimate_key))
    return Subject(
        density=density,
        log_prob=density.state_log_prob,
        flow=FlowDensity(model, divergence=divergence, solver=solver),
        exact_log_probs=exact,
        held_out=Sample(jnp.zeros((0, model.dim)), contexts[:0]) if held_out is None else held_out,
        contexts=contexts,
        key=sample_key,
    )


def first_rows(rows: Sample, count: int) -> Sample:
    """Return the first rows, at most `count` of them."""
    return rows.take(jnp.arange(min(count, len(rows.states))))


def values(function: LogProb, rows: Sample) -> np.ndarray:
    """Return the values of a log density at many rows, float64."""
    return _in_batches(_values, function, rows, BATCH_SIZE)


def gradients(function: LogProb, rows: Sample) -> np.ndarray:
    """Return the gradients of a log density at many rows, float64."""
    return _in_batches(_gradients, function, rows, BATCH_SIZE // 2)


def _in_batches(compiled: Callable[..., Any], first: Any, rows: Any, size: int) -> np.ndarray:
    """Return `compiled(first, rows)` in batches of one size, so that one compilation serves any number of rows."""
    count = len(jax.tree.leaves(rows)[0])
    padded = jax.tree.map(lambda leaf: leaf[jnp.arange(-(-count // size) * size) % count], rows)
    parts = [
        np.asarray(compiled(first, jax.tree.map(lambda leaf, i=i: leaf[i : i + size], padded)), np.float64)
        for i in range(0, count, size)
    ]
    return np.concatenate(parts)[:count]


@eqx.filter_jit
def _values(function: Any, rows: Sample) -> Float[Array, " rows"]:
    return jax.vmap(function)(rows.states, rows.contexts)


@eqx.filter_jit
def _gradients(function: Any, rows: Sample) -> Rows:
    return jax.vmap(jax.grad(function))(rows.states, rows.contexts)


@eqx.filter_jit
def _states(flow: tuple[AbstractProbabilityFlow, AbstractSolver], start: tuple[Rows, ContextRows]) -> Rows:
    model, solver = flow
    return jax.vmap(lambda z, c: state_from_noise(model, z, c, solver))(*start)
