"""Classes of the results of fits and diagnostics."""

from .diagnostics.findings import Diagnosis as Diagnosis
from .diagnostics.findings import Finding as Finding
from .diagnostics.ranks import Ranks as Ranks
from .diagnostics.reweighted import Reweighted as Reweighted
from .diagnostics.support import SupportCheck as SupportCheck
from .divergence.calibration import Residuals as Residuals
from .inference.posterior import AmortizedPosterior as AmortizedPosterior
from .inference.refined import Refined as Refined
from .references.choice import ReferenceChoice as ReferenceChoice
from .training.loop import History as History
from .training.report import Amortization as Amortization
from .training.report import FitReport as FitReport
from .training.report import StepErrors as StepErrors
