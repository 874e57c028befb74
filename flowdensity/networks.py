"""Networks for velocities, and for the log density of an amortized density."""

from .models.log_density import LogDensityNetwork as LogDensityNetwork
from .models.networks import AbstractNetwork as AbstractNetwork
from .models.networks import ResidualMLP as ResidualMLP
from .models.unet import UNet as UNet
