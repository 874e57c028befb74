"""Check of a learned divergence without a Jacobian."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..._typing import Key
from ...divergence.calibration import Residuals, stein_residuals
from ...divergence.kernel import mean_jacobian
from ...divergence.objectives import LangevinStein
from ...training.divergence import TRAJECTORY_STEPS, centers_about_samples
from ..findings import Finding, Measured
from ..subject import Subject
from .check import AbstractCheck

NUM_CENTERS = 4096
"""Number of samples of the model around which kernels are drawn."""
NUM_KERNEL_DRAWS = 16_384
"""Number of kernel draws over which a residual is averaged."""


def learned_divergence(subject: Subject) -> str | None:
    """Need a learned divergence.

    Examples:
        >>> [check.name for check in fd.checks.CHECKS if fd.checks.learned_divergence in check.needs]
        ['stein']
    """
    divergence = subject.flow.divergence
    if divergence.is_learned:
        return None
    return f"the divergence is computed by {type(divergence).__name__} and was not learned"


class SteinResiduals(AbstractCheck):
    """Errors of `log_prob` around samples of the model that the Stein residuals of a learned divergence imply.

    Attributes:
        max_bias: largest implied bias, in nats.
        max_coordinate: largest implied mean of the error times a coordinate, in nats.

    Examples:
        >>> divergence, report = fd.fit_divergence(key, density.model, data)
        >>> learned = density.with_divergence(divergence)
        >>> check = fd.checks.SteinResiduals(max_bias=0.05)
        >>> fd.diagnose(key, learned, checks=(check,))["stein.bias"].value
    """

    max_bias: float = 0.1
    max_coordinate: float = 0.4

    name = "stein"
    section = "Stein residuals of the learned divergence"
    needs = (learned_divergence,)
    randomized = True

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        advice = (
            "The divergence head is biased. fd.fit_divergence can help, with more steps and with the data that the density is "
            f"used on. {subject.exact_line}"
        )
        along = "implied error along the worst coordinate, nats"
        return (
            Finding("stein.bias", "implied bias, nats", "at most", self.max_bias, advice),
            Finding("stein.coordinate", along, "at most", self.max_coordinate, advice),
        )

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], Residuals]:
        divergence: Any = subject.flow.divergence
        model, objective = subject.model, LangevinStein(tails=0.0)
        center_key, jacobian_key, draw_key = jr.split(key, 3)
        samples = subject.draw(center_key, NUM_CENTERS)
        centers = centers_about_samples(center_key, model, samples, NUM_CENTERS)
        draws = objective.draw(jacobian_key, centers, NUM_KERNEL_DRAWS)
        control = mean_jacobian(model, jnp.sort(model.times(TRAJECTORY_STEPS)), draws)
        draws = objective.draw(draw_key, centers, NUM_KERNEL_DRAWS)
        residuals = stein_residuals(divergence.head, model, control, draws)
        bias, error = residuals.bias
        # Whitened coordinates have a root mean square of about one, so these figures are also in nats, and at most the error.
        widths = np.diff(residuals.times)[:, None]
        implied = np.abs(np.sum(widths * residuals.mean[:, 2:], axis=0))
        errors = np.sqrt(np.sum(np.square(widths * residuals.standard_error[:, 2:]), axis=0))
        worst = int(np.argmax(implied - errors))
        figures = {
            "stein.bias": Measured(abs(bias), error),
            "stein.coordinate": Measured(implied[worst], errors[worst], f"y[{worst}]"),
        }
        return figures, residuals
