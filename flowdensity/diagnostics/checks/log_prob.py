"""Checks of `log_prob` against the exact log density of the model's samples."""

import math
from dataclasses import dataclass

import numpy as np

from ..._typing import Key
from ...solving import AbstractSolver, Adaptive, FixedStep
from ..findings import Finding, Measured
from ..subject import Subject, first_rows, gradients, values
from .check import AbstractCheck

SECTION = "log_prob against the exact divergence"


@dataclass(frozen=True, eq=False)
class LogProbErrors:
    """Evidence of `LogProbError`.

    Attributes:
        log_probs: log densities of the points in whitened coordinates, shape `(points,)`, nats.
        errors: their errors, same shape.
    """

    log_probs: np.ndarray
    errors: np.ndarray


class LogProbError(AbstractCheck):
    r"""Root mean square and bias of the error of `log_prob`.

    Up to 64 dimensions, `log_prob` is compared with the exact divergence. Above, the error is estimated from two independent
    Hutchinson averages $H_1, H_2$ of the log density: $(\ell - H_1)(\ell - H_2)$ is an unbiased estimate of the squared error of
    $\ell$.

    Attributes:
        max_rmse: largest root mean square error, in nats. With an error of 0.4 nats, importance weights to the exact
            density leave an effective sample size of 85 % of the draws.
        max_bias: largest bias, in nats.

    Examples:
        >>> check = fd.checks.LogProbError(max_rmse=0.1)
        >>> fd.diagnose(key, fast, checks=(check,))["log_prob.rmse"].value
    """

    max_rmse: float = 0.4
    max_bias: float = 0.1

    name = "log_prob"
    section = SECTION
    needs = ()
    randomized = False

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        points = "held-out rows" if subject.has_held_out else "samples"
        advice = (
            "log_prob is not accurate enough for a posterior. More steps of fd.fit_divergence can help, and fd.reweight corrects "
            f"a posterior. {subject.exact_line}"
        )
        if subject.amortized:
            advice = (
                "The amortized log_prob is too far from that of its flow. More labels for fd.distill can help, and fd.reweight "
                f"corrects a posterior. {subject.exact_line}"
            )
        return (
            Finding("log_prob.rmse", f"root mean square over {points}, nats", "at most", self.max_rmse, advice),
            Finding("log_prob.bias", "absolute bias, nats", "at most", self.max_bias, advice),
        )

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], LogProbErrors]:
        errors = subject.errors
        mean, squares = errors.mean(0), errors[0] * errors[1]
        count = len(squares)
        square, square_error = squares.mean(), squares.std() / math.sqrt(count)
        figures = {
            "log_prob.rmse": Measured(*_root(square, square_error)),
            "log_prob.bias": Measured(abs(mean.mean()), mean.std() / math.sqrt(count)),
        }
        return figures, LogProbErrors(subject.log_probs, mean)


class GradientError(AbstractCheck):
    """Root mean square error of the gradient of `log_prob`, as a fraction of the root mean square of the gradient.

    Attributes:
        max_share: largest acceptable fraction.

    Examples:
        >>> check = fd.checks.GradientError(max_share=0.1)
        >>> fd.diagnose(key, fast, checks=(check,))["log_prob.gradient"].value
    """

    max_share: float = 0.3

    name = "gradient"
    section = SECTION
    needs = ()
    randomized = False

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        advice = f"A sampler follows the gradient. More steps, or a smoother activation, can help. {subject.exact_line}"
        return (Finding("log_prob.gradient", "relative error of the gradient", "at most", self.max_share, advice),)

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], None]:
        if subject.exact:
            return {"log_prob.gradient": Measured(0.0)}, None
        points = first_rows(subject.points, subject.num_points // 4)
        own = gradients(subject.log_prob, points)
        exact = [gradients(log_prob, points) for log_prob in subject.exact_log_probs]
        # With two independent estimates, both products are unbiased.
        wrong = np.sum((own - exact[0]) * (own - exact[-1]), axis=1)
        right = np.sum(exact[0] * exact[-1], axis=1)
        square = wrong.mean() / right.mean()
        # Standard error of a ratio of two means by the delta method.
        square_error = (wrong - max(square, 0.0) * right).std() / right.mean() / math.sqrt(len(wrong))
        return {"log_prob.gradient": Measured(*_root(square, square_error))}, None


def refinable_solver(subject: Subject) -> str | None:
    """Return why this check cannot run, or None: it requires a solver of this package that can be refined."""
    solver = subject.flow.solver
    if isinstance(solver, FixedStep | Adaptive):
        return None
    return f"only FixedStep and Adaptive solvers can be refined; this density has a {type(solver).__name__}"


class SolverError(AbstractCheck):
    """Root mean square change of the flow's `log_prob` when the solver takes twice as many steps.

    Attributes:
        max_change: largest acceptable change, in nats.

    Examples:
        >>> check = fd.checks.SolverError(max_change=0.01)
        >>> fd.diagnose(key, density, checks=(check,))["solver.change"].value
    """

    max_change: float = 0.05

    name = "solver"
    section = "Solver"
    needs = (refinable_solver,)
    randomized = False

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        whose = "density.flow" if subject.amortized else "density"
        finer = "" if refinable_solver(subject) else f" Fix: density = {whose}.{_finer(subject.flow.solver)[1]}"
        advice = f"The solver is too coarse.{finer}"
        return (Finding("solver.change", "change with twice the steps, nats", "at most", self.max_change, advice),)

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], None]:
        density = subject.density.flow if subject.amortized else subject.density
        coarse = values(density.state_log_prob, subject.points) if subject.amortized else subject.log_probs
        fine = values(density.with_solver(_finer(density.solver)[0]).state_log_prob, subject.points)
        squares = np.square(coarse - fine)
        change = math.sqrt(squares.mean())
        error = squares.std() / math.sqrt(len(squares)) / (2.0 * change) if change > 0.0 else 0.0
        return {"solver.change": Measured(change, error)}, None


def _root(square: float, square_error: float) -> tuple[float, float]:
    """Return the root of a mean square and its standard error, by the delta method unless the square is near zero."""
    root = math.sqrt(max(square, 0.0))
    return root, square_error / (2.0 * root) if square > square_error else math.sqrt(square_error)


def _finer(solver: AbstractSolver) -> tuple[AbstractSolver, str]:
    """Return a solver with twice the steps, and code that gives a density a solver with four times the steps."""
    if isinstance(solver, FixedStep):
        return FixedStep(2 * solver.steps, solver.method), f"with_solver(fd.FixedStep(steps={4 * solver.steps}))"
    assert isinstance(solver, Adaptive)
    finer = Adaptive(solver.rtol / 10.0, solver.atol / 10.0, solver.method, 4 * solver.max_steps)
    return finer, f"with_solver(fd.solvers.Adaptive(rtol={finer.rtol:g}, atol={finer.atol:g}))"
