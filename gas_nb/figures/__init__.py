"""Pictures and widgets: every public name of the chapters in nbs/figures, under one roof.

Pictures need plotly alone; the widgets of Jupyter are loaded when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

from gas_nb.runtime.extras import needs

with needs("notebooks"):
    import plotly  # noqa: F401

from gas_nb.figures.images import (
    ERROR_SCALE,
    Cells,
    comparison,
    contact_sheet,
    error_image,
    error_map,
    png_uri,
    samples,
    trajectory,
)
from gas_nb.figures.plots import (
    coefficients,
    learning_curves,
    reference_grids,
    results_table,
    time_grids,
    tradeoff,
)
from gas_nb.figures.stills import Figure, still, styled
from gas_nb.figures.theme import (
    INK,
    LINE,
    PHASE_COLORS,
    PHASE_LABELS,
    Look,
    color,
    label,
    measure_title,
    measures,
)

if TYPE_CHECKING:
    from gas_nb.figures.dashboard import LiveDashboard, StoppableLoop
    from gas_nb.figures.widgets import (
        Explorer,
        explore,
        has_frontend,
        nfe_explorer,
        parameter_form,
        time_grid_explorer,
        trajectory_explorer,
    )

__all__ = [
    "ERROR_SCALE",
    "INK",
    "LINE",
    "PHASE_COLORS",
    "PHASE_LABELS",
    "Cells",
    "Explorer",
    "Figure",
    "LiveDashboard",
    "Look",
    "StoppableLoop",
    "coefficients",
    "color",
    "comparison",
    "contact_sheet",
    "error_image",
    "error_map",
    "explore",
    "has_frontend",
    "label",
    "learning_curves",
    "measure_title",
    "measures",
    "nfe_explorer",
    "parameter_form",
    "png_uri",
    "reference_grids",
    "results_table",
    "samples",
    "still",
    "styled",
    "time_grid_explorer",
    "time_grids",
    "trajectory",
    "trajectory_explorer",
    "tradeoff",
]

_WIDGETS = {
    "dashboard": ("LiveDashboard", "StoppableLoop"),
    "widgets": (
        "Explorer",
        "explore",
        "has_frontend",
        "nfe_explorer",
        "parameter_form",
        "time_grid_explorer",
        "trajectory_explorer",
    ),
}


def __getattr__(name: str) -> Any:
    if not any(name in names for names in _WIDGETS.values()):
        raise AttributeError(f"module 'gas_nb.figures' has no attribute {name!r}")
    with needs("notebooks"):
        from gas_nb.figures import dashboard, widgets
    return getattr(dashboard if name in _WIDGETS["dashboard"] else widgets, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
