"""Bad input of each kind that was tried: calls as lines of Python, with what is wrong in each.

Nothing here is trained: the densities are those that a fit would start from.
"""

from .case import Case, Groups, error_of, is_sound, mend, untrained_fits
from .densities import DENSITIES
from .diagnostics import DIAGNOSTICS, PICTURES
from .files import FILES, write_files
from .fits import ALIKE, FITS, of_all_fits
from .models import ESTIMATORS, MODELS
from .posteriors import POSTERIORS

__all__ = [
    "ALIKE",
    "SECTIONS",
    "Case",
    "Groups",
    "error_of",
    "is_sound",
    "mend",
    "of_all_fits",
    "untrained_fits",
    "write_files",
]

SECTIONS: dict[str, Groups] = {
    "All fits": [of_all_fits(ALIKE[0])],
    "Fits and distillations": FITS,
    "Densities, sites and guides": DENSITIES,
    "Models and networks": MODELS,
    "Solvers, estimators and rounded data": ESTIMATORS,
    "Posteriors of models": POSTERIORS,
    "Diagnostics": DIAGNOSTICS,
    "Files": FILES,
    "Pictures": PICTURES,
}
