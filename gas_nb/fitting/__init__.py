"""The fit of a solver without backpropagation: grids, rows, then Gauss-Newton steps."""

from .options import FitOptions
from .chart import Chart, to_chart, to_tableau
from .distance import Distance, evaluate, sample_losses
from .rows import fit_rows, refit_last_row
from .start import FitStep, Outcome, start_fit
from .step import gauss_newton_step
from .late import fit_late_starts

__all__ = [
    "Chart",
    "Distance",
    "FitOptions",
    "FitStep",
    "Outcome",
    "evaluate",
    "fit_late_starts",
    "fit_rows",
    "gauss_newton_step",
    "refit_last_row",
    "sample_losses",
    "start_fit",
    "to_chart",
    "to_tableau",
]
