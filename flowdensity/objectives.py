"""Objectives for the distillation of a divergence."""

from .divergence.objectives import AbstractObjective as AbstractObjective
from .divergence.objectives import HutchinsonRegression as HutchinsonRegression
from .divergence.objectives import LangevinStein as LangevinStein
from .divergence.objectives import ScoreStein as ScoreStein
