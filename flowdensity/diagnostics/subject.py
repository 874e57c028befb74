"""What is diagnosed: a density, its rival with the exact divergence, and the points where the two are compared."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._typing import Array, Context, ContextRows, Float, Key, Rows, Scalar, State
from ..data.tables import Sample
from ..distributions.flow import FlowDensity
from ..distributions.learned import AbstractLearnedDensity
from ..divergence.exact import ExactDivergence
from ..divergence.interface import AbstractDivergence
from ..divergence.stochastic import HutchinsonDivergence
from ..models.flows import AbstractProbabilityFlow
from ..solving import AbstractSolver, state_from_noise, state_log_prob

LARGEST = 64
"""Dimension up to which the exact divergence is affordable; above, two independent Hutchinson averages take its place."""
PROBES = 64
"""Probes of each of them."""
BATCH = 256
"""Points that are solved for together."""

LogProb: TypeAlias = Callable[[State, Context], Scalar]


class Solved(eqx.Module):
    """Log density of a whitened state given a whitened context, by solving the ODE."""

    model: AbstractProbabilityFlow
    divergence: AbstractDivergence
    solver: AbstractSolver

    def __call__(self, state: State, context: Context) -> Scalar:
        return state_log_prob(self.model, self.divergence, state, context, self.solver)


class Estimated(eqx.Module):
    """Log density with a Hutchinson average in place of the exact divergence, with probes of its own for each state.

    The errors at different states are then independent, and their average goes to zero.
    """

    model: AbstractProbabilityFlow
    solver: AbstractSolver
    key: Key
    probes: int = eqx.field(static=True)

    def __call__(self, state: State, context: Context) -> Scalar:
        number = jax.lax.bitcast_convert_type(jnp.sum(jax.lax.stop_gradient(state)).astype(jnp.float32), jnp.uint32)
        divergence = HutchinsonDivergence(jr.fold_in(self.key, number), self.probes)
        return state_log_prob(self.model, divergence, state, context, self.solver)


class Subject(NamedTuple):
    """A density under diagnosis.

    Attributes:
        density: as it was handed over.
        log_prob: its log density in whitened coordinates.
        flow: the flow in it, without context, with its own divergence and solver.
        rivals: log densities to compare with: the exact one, or two whose errors are independent and average to zero.
        held: held-out rows, whitened; None if there are none.
        contexts: whitened contexts, from which those of samples are drawn.
    """

    density: AbstractLearnedDensity
    log_prob: LogProb
    flow: FlowDensity
    rivals: tuple[Solved | Estimated, ...]
    held: Sample | None
    contexts: ContextRows

    @property
    def exact(self) -> bool:
        """Whether the density is the exact one itself."""
        return self.density.flow is self.density and self.density.divergence.is_exact

    @property
    def model(self) -> AbstractProbabilityFlow:
        """The probability flow."""
        return self.flow.model

    def draw(self, key: Key, count: int) -> Sample:
        """Samples of the model, whitened, each with a context of those that there are."""
        context_key, noise_key = jr.split(key)
        contexts = self.contexts[jr.randint(context_key, (count,), 0, len(self.contexts))]
        return Sample(jnp.asarray(self.at(noise_key, contexts), float), contexts)

    def at(self, key: Key, contexts: ContextRows) -> np.ndarray:
        """One sample of the model, whitened, for each of some whitened contexts; float64."""
        noise = jr.normal(key, (len(contexts), self.model.dim))
        return _in_batches(_states, (self.model, self.flow.solver), (noise, contexts), BATCH)


def subject(key: Key, density: AbstractLearnedDensity, held: Sample | None, contexts: ContextRows) -> Subject:
    """What `diagnose` looks at, once its arguments are checked."""
    model, divergence, solver = density.model, density.divergence, density.solver
    if model.dim <= LARGEST:
        rivals: tuple[Solved | Estimated, ...] = (Solved(model, ExactDivergence(), solver),)
    else:
        rivals = tuple(Estimated(model, solver, each, PROBES) for each in jr.split(key))
    return Subject(
        density,
        density.state_log_prob,
        FlowDensity(model, divergence=divergence, solver=solver),
        rivals,
        held,
        contexts,
    )


def values(function: LogProb, rows: Sample) -> np.ndarray:
    """A log density of many rows, float64."""
    return _in_batches(_values, function, rows, BATCH)


def slopes(function: LogProb, rows: Sample) -> np.ndarray:
    """Gradients of a log density at many rows, float64."""
    return _in_batches(_slopes, function, rows, BATCH // 2)


def _in_batches(compiled: Callable[..., Any], first: Any, rows: Any, size: int) -> np.ndarray:
    """`compiled(first, rows)` in batches of one size, whatever the number of rows: one compilation for all of them."""
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
def _slopes(function: Any, rows: Sample) -> Rows:
    return jax.vmap(jax.grad(function))(rows.states, rows.contexts)


@eqx.filter_jit
def _states(flow: tuple[AbstractProbabilityFlow, AbstractSolver], start: tuple[Rows, ContextRows]) -> Rows:
    model, solver = flow
    return jax.vmap(lambda z, c: state_from_noise(model, z, c, solver))(*start)
