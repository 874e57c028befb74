"""Learned densities as numpyro distributions."""

from . import checks, divergences, encoders, models, networks, objectives, paths, plots, results, solvers
from .data.rounding import bits_per_dimension, dequantize
from .diagnostics.delayed import DelayedAcceptance
from .diagnostics.diagnose import diagnose
from .diagnostics.reweight import reweight
from .diagnostics.sbc import simulation_based_calibration
from .diagnostics.support import check_support
from .distributions.amortized import AmortizedDensity
from .distributions.elbo import PathGradientELBO
from .distributions.flow import FlowDensity
from .distributions.guide import AutoFlow, as_guide, flow_module
from .distributions.learned import AbstractLearnedDensity
from .distributions.reparam import FlowReparam
from .distributions.rounded import Rounded
from .distributions.sites import sample_sites
from .divergence.exact import ExactDivergence
from .divergence.stein import SteinDivergence
from .divergence.stochastic import HutchinsonDivergence, HutchPlusPlusDivergence
from .inference.posterior import fit_posterior
from .models.fields import VelocityField
from .models.pretrained import from_ddpm, from_edm
from .solving import FixedStep
from .storage.files import load, load_report, save
from .training.distill import distill
from .training.divergence import fit_divergence
from .training.fit import fit_diffusion, fit_flow, fit_likelihood
from .training.loop import TrainingDiverged
from .training.training import Training

__version__ = "0.1.0"
__all__ = [
    "AbstractLearnedDensity",
    "AmortizedDensity",
    "AutoFlow",
    "DelayedAcceptance",
    "ExactDivergence",
    "FixedStep",
    "FlowDensity",
    "FlowReparam",
    "HutchPlusPlusDivergence",
    "HutchinsonDivergence",
    "PathGradientELBO",
    "Rounded",
    "SteinDivergence",
    "Training",
    "TrainingDiverged",
    "VelocityField",
    "as_guide",
    "bits_per_dimension",
    "check_support",
    "checks",
    "dequantize",
    "diagnose",
    "distill",
    "divergences",
    "encoders",
    "fit_diffusion",
    "fit_divergence",
    "fit_flow",
    "fit_likelihood",
    "fit_posterior",
    "flow_module",
    "from_ddpm",
    "from_edm",
    "load",
    "load_report",
    "models",
    "networks",
    "objectives",
    "paths",
    "plots",
    "results",
    "reweight",
    "sample_sites",
    "save",
    "simulation_based_calibration",
    "solvers",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
