"""Gaussian probability paths."""

from .models.paths import AbstractPath as AbstractPath
from .models.paths import CondOT as CondOT
from .models.paths import Trigonometric as Trigonometric
from .models.paths import VarianceExploding as VarianceExploding
from .models.paths import VariancePreserving as VariancePreserving
