"""Checks of a density, one object each, and the tuple of those that `diagnose` runs by default."""

from ..findings import Finding as Finding
from ..findings import Measured as Measured
from ..subject import Subject as Subject
from .check import AbstractCheck as AbstractCheck
from .check import held_out_rows as held_out_rows
from .default import CHECKS as CHECKS
from .integral import IntegralByQuadrature as IntegralByQuadrature
from .integral import IntegralBySampling as IntegralBySampling
from .integral import exact_log_prob as exact_log_prob
from .log_prob import GradientError as GradientError
from .log_prob import LogProbError as LogProbError
from .log_prob import SolverError as SolverError
from .samples import Coverage as Coverage
from .samples import NearestNeighborTest as NearestNeighborTest
from .score import LogScore as LogScore
from .stein import SteinResiduals as SteinResiduals
from .stein import learned_divergence as learned_divergence
from .tails import Tails as Tails
