"""Networks: velocity fields, and the log density that a density is distilled into."""

from .models.log_density import LogDensityNetwork as LogDensityNetwork
from .models.networks import AbstractNetwork as AbstractNetwork
from .models.networks import ResidualMLP as ResidualMLP
from .models.unet import UNet as UNet
