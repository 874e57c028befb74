"""The checks that `diagnose` runs by default."""

from .check import AbstractCheck
from .integral import IntegralByQuadrature, IntegralBySampling
from .log_prob import GradientError, LogProbError, SolverError
from .samples import Coverage, NearestNeighborTest
from .score import LogScore
from .stein import SteinResiduals
from .tails import Tails

CHECKS: tuple[AbstractCheck, ...] = (
    LogProbError(),
    GradientError(),
    SteinResiduals(),
    SolverError(),
    IntegralBySampling(),
    IntegralByQuadrature(),
    Tails(),
    NearestNeighborTest(),
    Coverage(),
    LogScore(),
)
"""The checks that `diagnose` runs by default, in the order in which their findings are shown."""
