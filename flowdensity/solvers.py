"""Solvers of the ODE."""

from .solving import AbstractSolver as AbstractSolver
from .solving import Adaptive as Adaptive
from .solving import FixedStep as FixedStep
