"""Mixtures of Gaussians that are fitted to white rows."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture


def fit_mixture(rows: np.ndarray, components: int, floor: float) -> GaussianMixture:
    """The mixture of so many Gaussians that makes rows, shape `(n, dim)`, likeliest, with `floor` added to its variances."""
    mixture = GaussianMixture(components, reg_covar=floor, random_state=0)
    with warnings.catch_warnings():
        # Where it has not converged it is as good as what it scores.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(rows)
