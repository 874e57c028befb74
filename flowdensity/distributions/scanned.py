"""What numpyro's `scan` makes of a distribution: a copy of everything for each step, with the steps as batch axes."""

from typing import Any, TypeVar

import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.batch_util import promote_batch_shape

Inner = TypeVar("Inner", bound=dist.Distribution)


def is_one(density: Any) -> bool:
    """Whether the batch axes of a density are those of its contexts, and not, as after `vmap`, of several densities."""
    return density.context is not None and np.shape(density.context)[:-1] == density.batch_shape


def promoted(inner: Inner, batch_shape: tuple[int, ...]) -> Inner:
    """An inner distribution with the batch shape of the outer one, to which a scan may have given axes of its own.

    numpyro does so for wrappers that it knows: its own.
    """
    return inner if inner.batch_shape == batch_shape else promote_batch_shape(inner)
