"""Models: the probability flows that are learned or wrapped, and the references that they depart from."""

from .fields import VelocityField as VelocityField
from .flows import AbstractGaussianFlow as AbstractGaussianFlow
from .flows import AbstractProbabilityFlow as AbstractProbabilityFlow
from .flows import GaussianFlow as GaussianFlow
from .mixture import GaussianMixture as GaussianMixture
from .pretrained import PretrainedDiffusion as PretrainedDiffusion
from .pretrained import from_ddpm as from_ddpm
from .pretrained import from_edm as from_edm
