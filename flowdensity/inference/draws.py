"""Draws of named values in arviz's form."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def as_posterior(values: Mapping[str, Any], group: str = "posterior") -> Any:
    """Return draws, shape `(chain, draw, *shape)`, as `InferenceData`, or as `DataTree` with arviz 1."""
    import arviz

    arrays = {name: np.asarray(value) for name, value in values.items()}
    if hasattr(arviz, "InferenceData"):
        groups: Any = {group: arviz.dict_to_dataset(arrays)}
        return arviz.InferenceData(**groups)
    return arviz.from_dict({group: arrays})
