"""Learned densities as numpyro distributions."""

from .distributions.flow import FlowDensity as FlowDensity
from .distributions.reparam import FlowReparam as FlowReparam
from .divergence.exact import ExactDivergence as ExactDivergence
from .divergence.interface import AbstractDivergence as AbstractDivergence
from .divergence.stein import SteinDivergence as SteinDivergence
from .divergence.stochastic import HutchinsonDivergence as HutchinsonDivergence
from .models.flows import AbstractProbabilityFlow as AbstractProbabilityFlow
from .models.flows import Flow as Flow
from .models.networks import AbstractNetwork as AbstractNetwork
from .models.networks import ResidualMLP as ResidualMLP
from .models.paths import AbstractPath as AbstractPath
from .models.paths import CondOT as CondOT
from .models.paths import Trigonometric as Trigonometric
from .solving import AbstractSolver as AbstractSolver
from .solving import Adaptive as Adaptive
from .solving import FixedStep as FixedStep
from .training.divergence import fit_divergence as fit_divergence
from .training.fit import fit_flow as fit_flow
from .training.loop import TrainingDiverged as TrainingDiverged
from .training.report import FitReport as FitReport
from .training.report import Residuals as Residuals

__version__ = "0.1.0"
