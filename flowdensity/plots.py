"""Plots of densities, fits and diagnoses. Each function returns its axes."""

from .diagnostics.plots import plot_density as plot_density
from .diagnostics.plots import plot_errors as plot_errors
from .diagnostics.plots import plot_prior_posterior as plot_prior_posterior
from .diagnostics.plots import plot_residuals as plot_residuals
from .diagnostics.plots import plot_training as plot_training
from .diagnostics.rank_plots import plot_ranks as plot_ranks
