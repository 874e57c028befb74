"""Learned densities as numpyro distributions."""

from .data.images import bits_per_dimension as bits_per_dimension
from .data.images import dequantise as dequantise
from .distributions.flow import FlowDensity as FlowDensity
from .distributions.reparam import FlowReparam as FlowReparam
from .divergence.exact import ExactDivergence as ExactDivergence
from .divergence.interface import AbstractDivergence as AbstractDivergence
from .divergence.stein import SteinDivergence as SteinDivergence
from .divergence.stochastic import HutchinsonDivergence as HutchinsonDivergence
from .divergence.stochastic import HutchPlusPlusDivergence as HutchPlusPlusDivergence
from .models.fields import VelocityField as VelocityField
from .models.flows import AbstractCircle as AbstractCircle
from .models.flows import AbstractProbabilityFlow as AbstractProbabilityFlow
from .models.flows import ContinuousFlow as ContinuousFlow
from .models.flows import Diffusion as Diffusion
from .models.flows import Flow as Flow
from .models.networks import AbstractNetwork as AbstractNetwork
from .models.networks import ResidualMLP as ResidualMLP
from .models.paths import AbstractPath as AbstractPath
from .models.paths import CondOT as CondOT
from .models.paths import Trigonometric as Trigonometric
from .models.paths import VarianceExploding as VarianceExploding
from .models.paths import VariancePreserving as VariancePreserving
from .models.pretrained import PretrainedDiffusion as PretrainedDiffusion
from .models.pretrained import from_ddpm as from_ddpm
from .models.pretrained import from_edm as from_edm
from .models.unet import UNet as UNet
from .solving import AbstractSolver as AbstractSolver
from .solving import Adaptive as Adaptive
from .solving import FixedStep as FixedStep
from .training.divergence import fit_divergence as fit_divergence
from .training.fit import fit_diffusion as fit_diffusion
from .training.fit import fit_flow as fit_flow
from .training.fit import fit_likelihood as fit_likelihood
from .training.loop import TrainingDiverged as TrainingDiverged
from .training.objectives import AbstractObjective as AbstractObjective
from .training.objectives import HutchinsonRegression as HutchinsonRegression
from .training.objectives import LangevinStein as LangevinStein
from .training.objectives import ScoreStein as ScoreStein
from .training.report import FitReport as FitReport
from .training.report import Residuals as Residuals

__version__ = "0.1.0"
