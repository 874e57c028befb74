"""Checks of a density, and the tuple of the checks that `diagnose` runs by default."""

from .diagnostics.checks.check import AbstractCheck as AbstractCheck
from .diagnostics.checks.check import held_out_rows as held_out_rows
from .diagnostics.checks.default import CHECKS as CHECKS
from .diagnostics.checks.integral import IntegralByQuadrature as IntegralByQuadrature
from .diagnostics.checks.integral import IntegralBySampling as IntegralBySampling
from .diagnostics.checks.integral import exact_log_prob as exact_log_prob
from .diagnostics.checks.log_prob import GradientError as GradientError
from .diagnostics.checks.log_prob import LogProbError as LogProbError
from .diagnostics.checks.log_prob import SolverError as SolverError
from .diagnostics.checks.samples import Coverage as Coverage
from .diagnostics.checks.samples import NearestNeighborTest as NearestNeighborTest
from .diagnostics.checks.score import LogScore as LogScore
from .diagnostics.checks.stein import SteinResiduals as SteinResiduals
from .diagnostics.checks.stein import learned_divergence as learned_divergence
from .diagnostics.checks.tails import Tails as Tails
from .diagnostics.findings import Finding as Finding
from .diagnostics.findings import Measured as Measured
from .diagnostics.subject import Subject as Subject
