"""Report of a fit."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._display import Row, html_table, one_line
from .._registry import savable
from ..divergence.calibration import Residuals
from ..references.choice import ReferenceChoice
from .loop import History


@savable
@dataclass(frozen=True)
class StepErrors:
    """Choice of the solver's number of steps: the smallest number tried whose error is within a tolerance.

    Attributes:
        steps: numbers of steps that were tried. The last one was chosen.
        errors: for each number, the root mean square change of `log_prob` over rows of the data when the number of steps is
            doubled, in nats.
        tolerance: largest acceptable error, in nats.

    Examples:
        >>> report.steps.steps[-1], report.steps.errors[-1]
        >>> print(report.steps.summary())
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    tolerance: float

    def summary(self) -> str:
        """One line of text."""
        return (
            f"solver: {self.steps[-1]} steps; log_prob is within {self.errors[-1]:.2g} nats (root mean square) of that with "
            f"twice as many, tolerance {self.tolerance:g}"
        )


@savable
@dataclass(frozen=True)
class Amortization:
    """Difference between an amortized density and the flow it was distilled from, on fresh samples of the flow.

    Attributes:
        bias: mean difference of their log densities in nats, after normalization, and its standard error.
        rmse: root mean square difference, and its standard error.
        gradient: root mean square error of the gradient of `log_prob` in whitened coordinates, as a fraction of the root mean
            square of that gradient.
        log_normalizer: log of the integral of the amortized density in nats, and its standard error; 0 means normalized.
        between_contexts: standard deviation of the log normalizer between contexts, in nats, without the Monte Carlo error;
            0 without a context.
        efficiency: effective sample size, as a fraction of the draws, when draws of the amortized density are reweighted to
            the flow.

    Examples:
        >>> fast, report = fd.distill(key, density)
        >>> rmse, standard_error = report.amortization.rmse
    """

    bias: tuple[float, float]
    rmse: tuple[float, float]
    gradient: float
    log_normalizer: tuple[float, float]
    between_contexts: float
    efficiency: float

    def summary(self) -> str:
        """One line of text."""
        (bias, bias_error), (rmse, rmse_error) = self.bias, self.rmse
        integral, integral_error = self.log_normalizer
        between = f", its sd between contexts {self.between_contexts:.4f}" if self.between_contexts else ""
        return (
            f"amortized minus flow log_prob, on fresh samples of the flow: mean {bias:+.3f} +- {bias_error:.3f} nats, root mean "
            f"square {rmse:.3f} +- {rmse_error:.3f}; relative error of the gradient {self.gradient:.1%}; log normalizer "
            f"{integral:+.4f} +- {integral_error:.4f}{between}; reweighting to the flow keeps {self.efficiency:.1%} of the draws"
        )


@savable
@dataclass(frozen=True)
class FitReport:
    """Report of a fit: losses, errors of the learned functions and wall time, with a readable `summary()`.

    Attributes:
        histories: for each stage, the losses and how the stage ended.
        residuals: Stein residuals of the learned divergence on fresh kernel draws around samples of the model; None if no
            divergence was learned.
        seconds: wall time of each stage.
        steps: how the solver's number of steps was chosen; None for fits that do not choose it.
        amortization: difference between an amortized density and its flow; None for other fits.
        reference: how the reference of a flow was chosen; None if there was no choice.
        columns: transforms of the columns before the whitening, in one line; None for fits without whitening.
        divergence: the divergence that was chosen by default and the reason, in one line; None if it was distilled or given.
        interrupted: stages that Ctrl-C cut short or left undone; None for a fit that ran to its end.
        marginalized: latent sites of a model that simulations integrated out, in one line; None if there are none.

    Examples:
        >>> print(report.summary())
        >>> report.losses["flow"]["validation"]
    """

    histories: dict[str, History]
    seconds: dict[str, float]
    residuals: Residuals | None = None
    steps: StepErrors | None = None
    amortization: Amortization | None = None
    reference: ReferenceChoice | None = None
    columns: str | None = None
    divergence: str | None = None
    interrupted: tuple[str, ...] | None = None
    marginalized: str | None = None

    @property
    def learned(self) -> bool:
        """Whether at least one training step was taken."""
        return any(history.learned for history in self.histories.values())

    def so_far(self) -> str:
        """Say what is returned if the fit is interrupted now, as the end of a sentence."""
        undone = self.interrupted or ()
        is_exact = "divergence" in undone and "divergence" not in self.histories
        more = ". Its divergence is the exact one; fd.fit_divergence distills it" if is_exact else ""
        return f"the best until then is returned. Not completed: {', '.join(undone)}{more}"

    def marginalizing(self, sites: Sequence[str]) -> "FitReport":
        """Add the latent sites of a model that simulations integrated out."""
        if not sites:
            return self
        return dataclasses.replace(self, marginalized=f"integrated out by simulation: {', '.join(sites)}")

    def with_divergence(self, learned: "FitReport", *undone: str) -> "FitReport":
        """Add the report of a `learned` divergence to that of its flow; `undone` names the stages that remain after it."""
        return dataclasses.replace(
            self,
            histories=self.histories | learned.histories,
            seconds=self.seconds | learned.seconds,
            residuals=learned.residuals,
            interrupted=(*(learned.interrupted or ()), *undone),
        )

    @property
    def losses(self) -> dict[str, dict[str, np.ndarray]]:
        """Arrays "step", "train" and "validation" of equal length for each stage."""
        return {stage: history.arrays() for stage, history in self.histories.items()}

    @property
    def conclusion(self) -> str:
        """The verdict in words, such as "Fit finished: flow and divergence in 95 s."."""
        seconds = f"{sum(self.seconds.values()):.0f} s"
        if self.interrupted is not None:
            return f"Interrupted after {seconds}; not completed: {', '.join(self.interrupted)}."
        # A stage without a step had nothing to learn, so it is not listed.
        stuck = [stage for stage, history in self.histories.items() if history.learned and history.best_step == 0]
        if stuck:
            improved = f"Training of the {' and the '.join(stuck)} did not improve held-out rows"
            if self.reference is not None and self.reference.components is not None:
                return f"Fit finished in {seconds}: the density is a mixture of Gaussians. {improved} further."
            return f"{improved}: the result is the reference ({seconds})."
        return f"Fit finished: {' and '.join(self.histories) or 'no stages'} in {seconds}."

    def summary(self) -> str:
        """Return the verdict in words, and one line each for the columns, the stages and the learned functions."""
        return "\n".join([self.conclusion, *self._lines()])

    def _lines(self) -> list[str]:
        lines = [] if self.columns is None else [self.columns]
        if self.reference is not None:
            lines.append(self.reference.summary())
        for stage, history in self.histories.items():
            if history.gain is None:
                kept = history.validation[history.step.index(history.best_step)]
                reached = f"validation loss {history.validation[0]:.4f} -> {kept:.4f}"
            else:
                gain, error = history.gain
                reached = f"held-out log density {gain:+.3f} +- {error:.3f} nats relative to the reference"
            lines.append(
                f"{stage}: {history.step[-1]} steps in {history.seconds:.0f} s, {history.ending}; {reached}, "
                f"weights of step {history.best_step}"
            )
        if self.divergence is not None:
            lines.append(self.divergence)
        if self.residuals is not None:
            bias, error = self.residuals.bias
            share = np.mean(np.abs(self.residuals.z) > 2.0)
            lines.append(
                f"learned divergence: mean error of log_prob {bias:+.3f} +- {error:.3f} nats over samples of the "
                f"model; {share:.0%} of {self.residuals.z.size} Stein residuals beyond 2 standard errors (5 % expected)"
            )
        if self.steps is not None:
            lines.append(self.steps.summary())
        if self.amortization is not None:
            lines.append(self.amortization.summary())
        if self.marginalized is not None:
            lines.append(self.marginalized)
        if self.interrupted is not None:
            lines.append(f"interrupted: not completed: {', '.join(self.interrupted)}")
        others = {k: v for k, v in self.seconds.items() if k not in self.histories}
        if others:
            lines.append("also: " + ", ".join(f"{k} {v:.0f} s" for k, v in others.items()))
        return lines

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        # The text before the first colon names the subject of the line.
        rows = [Row((about, text)) for about, _, text in (line.partition(": ") for line in self._lines())]
        finished = self.conclusion.startswith("Fit finished")
        return html_table("Fit", self.conclusion, rows, verdict="good" if finished else "unclear")
