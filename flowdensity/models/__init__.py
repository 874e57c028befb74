"""Models: learned and wrapped probability flows, and the reference densities that they build on."""

from ..references.conditional import ConditionalMixture
from ..references.mixture import GaussianMixture
from .fields import VelocityField
from .flows import AbstractGaussianFlow, AbstractProbabilityFlow, GaussianFlow
from .pretrained import PretrainedDiffusion, from_ddpm, from_edm

__all__ = [
    "AbstractGaussianFlow",
    "AbstractProbabilityFlow",
    "ConditionalMixture",
    "GaussianFlow",
    "GaussianMixture",
    "PretrainedDiffusion",
    "VelocityField",
    "from_ddpm",
    "from_edm",
]


def __dir__() -> list[str]:
    return __all__
