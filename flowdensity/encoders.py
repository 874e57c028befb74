"""Encoders of contexts with many rows, for `fit_flow(..., encoder=)`."""

from .models.encoders import AbstractEncoder as AbstractEncoder
from .models.encoders import DeepSet as DeepSet
from .models.encoders import Sequence as Sequence
