"""The names of `gas_nb.fitting` under their old address."""

from gas_nb.fitting.chart import Chart, to_chart, to_tableau
from gas_nb.fitting.coordinates import (
    NewtonCoordinates,
    PlainCoordinates,
    coordinates,
    newton_terms,
)
from gas_nb.fitting.distance import (
    Distance,
    evaluate,
    leverage_weights,
    robust_summary,
    sample_losses,
)
from gas_nb.fitting.late import fit_late_starts, late_rows
from gas_nb.fitting.options import FitOptions
from gas_nb.fitting.rows import dense_output, fit_rows, least_squares, refit_last_row
from gas_nb.fitting.sensitivities import normal_equations, sensitivities
from gas_nb.fitting.start import (
    FitStep,
    GridTrial,
    Outcome,
    choose_grid,
    comparable,
    search_grid,
    start_fit,
    try_classics,
)
from gas_nb.fitting.step import Trial, bounded_step, gauss_newton_step, search_damping

__all__ = [
    "Chart",
    "Distance",
    "FitOptions",
    "FitStep",
    "GridTrial",
    "NewtonCoordinates",
    "Outcome",
    "PlainCoordinates",
    "Trial",
    "bounded_step",
    "choose_grid",
    "comparable",
    "coordinates",
    "dense_output",
    "evaluate",
    "fit_late_starts",
    "fit_rows",
    "gauss_newton_step",
    "late_rows",
    "least_squares",
    "leverage_weights",
    "newton_terms",
    "normal_equations",
    "refit_last_row",
    "robust_summary",
    "sample_losses",
    "search_damping",
    "search_grid",
    "sensitivities",
    "start_fit",
    "to_chart",
    "to_tableau",
    "try_classics",
]
