"""Divergences of a velocity: exact, stochastic and learned."""

from .divergence.exact import ExactDivergence as ExactDivergence
from .divergence.interface import AbstractDivergence as AbstractDivergence
from .divergence.stein import SteinDivergence as SteinDivergence
from .divergence.stochastic import HutchinsonDivergence as HutchinsonDivergence
from .divergence.stochastic import HutchPlusPlusDivergence as HutchPlusPlusDivergence
