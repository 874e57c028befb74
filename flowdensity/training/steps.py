"""Choose the number of solver steps: the smallest such that doubling it hardly changes `log_prob`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._typing import Array, Float, Int, Key, Scalar, Times
from .._warnings import warn
from ..data.tables import Sample
from ..distributions.flow import FlowDensity
from ..divergence.interface import AbstractDivergence
from ..divergence.stochastic import unbiased_divergence
from ..models.flows import AbstractProbabilityFlow
from ..solving import AbstractSolver, Field, FixedStep, state_log_prob
from .report import StepErrors

STEP_COUNTS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of solver steps that are tried. Each is compared with twice the number."""
MAX_ROWS = 256
"""Maximum number of rows for the comparison of solver steps."""


def choose_steps(
    key: Key, density: FlowDensity, table: Sample, tolerance: float, rows: int = MAX_ROWS
) -> tuple[FixedStep, StepErrors]:
    """Choose the smallest number of steps for which doubling it changes `log_prob` by less than `tolerance`.

    The change is a root mean square over rows of the table. The solver has order three: doubling the steps divides the error by
    eight, so the change is seven eighths of the error.

    Args:
        key: JAX PRNG key of the rows.
        density: a density without context, with its divergence. Above sixteen dimensions an exact divergence is replaced by a
            Hutchinson estimate, which varies as fast.
        table: whitened events and contexts.
        tolerance: largest acceptable change, in nats.
        rows: number of rows that are drawn from the table.

    Returns:
        The solver and the errors. If no number is large enough, the solver has the largest one and there is a warning.
    """
    row_key, probe_key = jr.split(key)
    sample = table.draw(row_key, rows)
    model, divergence = density.model, density.divergence
    if divergence.is_exact:
        divergence = unbiased_divergence(probe_key, model.dim)
    found: dict[int, np.ndarray] = {}

    def log_probs(steps: int) -> np.ndarray:
        if steps not in found:
            grid = model.times(steps)[::-1]
            grid = jnp.pad(grid, (0, 2 * STEP_COUNTS[-1] - steps), mode="edge")
            found[steps] = np.asarray(_log_probs(model, divergence, sample, grid, jnp.asarray(steps)), np.float64)
        return found[steps]

    errors: dict[int, float] = {}
    for steps in STEP_COUNTS:
        errors[steps] = float(np.sqrt(np.mean(np.square(log_probs(steps) - log_probs(2 * steps)))))
        if errors[steps] <= tolerance:
            break
    chosen, error = list(errors.items())[-1]
    if not error <= tolerance:
        warn(
            f"The solver's error in log_prob is {error:.2g} nats with {chosen} steps, the most that were tried, and the "
            f"tolerance {tolerance:g}. Fix: density = density.with_solver(fd.FixedStep(steps={2 * chosen}))"
        )
    return FixedStep(chosen), StepErrors(tuple(errors), tuple(errors.values()), tolerance)


class _Counted(AbstractSolver):
    """`FixedStep` on a padded grid with a traced number of steps, so that all numbers share one compilation."""

    grid: Times
    count: Int[Array, ""]

    def integrate(self, field: Field, times: object, start: object, reverse: bool) -> object:
        step = FixedStep().step(field)
        carry = (start, field(self.grid[0], start))
        (end, _) = jax.lax.fori_loop(
            0, self.count, lambda i, carry: step(carry, (self.grid[i], self.grid[i + 1]))[0], carry
        )
        return end


@eqx.filter_jit
def _log_probs(
    model: AbstractProbabilityFlow, divergence: AbstractDivergence, rows: Sample, grid: Times, count: Int[Array, ""]
) -> Float[Array, " rows"]:
    solver = _Counted(grid, count)

    def one(state: Array, context: Array) -> Scalar:
        return state_log_prob(model, divergence, state, context, solver)

    return jax.vmap(one)(rows.states, rows.contexts)
