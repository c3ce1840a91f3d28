"""The names of the sweeps in one place, and `python -m gas_nb.sweep`: a sweep, or a job of one."""

import sys

from gas_nb.runs import finished_run
from gas_nb.sweeps.command import main
from gas_nb.sweeps.config import (
    DEFAULT_SPACING,
    LEARNED,
    Cell,
    SweepConfig,
    sweep_cells,
    swept_by_default,
    training_config,
    training_free_rows,
)
from gas_nb.sweeps.jobs import run_processes
from gas_nb.sweeps.runner import (
    Laboratory,
    Sweep,
    best_recipe,
    exact_teacher,
    load_sweep,
    run_job,
    train_solvers,
    trained,
)
from gas_nb.sweeps.store import provenance, settle_reference
from gas_nb.sweeps.tables import (
    EXACT,
    TABLES,
    app_rows,
    error_names,
    figure_names,
    markdown_tables,
    printed_metrics,
    row_title,
    summary,
    with_differences,
)

__all__ = [
    "DEFAULT_SPACING",
    "EXACT",
    "LEARNED",
    "TABLES",
    "Cell",
    "Laboratory",
    "Sweep",
    "SweepConfig",
    "app_rows",
    "best_recipe",
    "error_names",
    "exact_teacher",
    "figure_names",
    "finished_run",
    "load_sweep",
    "main",
    "markdown_tables",
    "printed_metrics",
    "provenance",
    "row_title",
    "run_job",
    "run_processes",
    "settle_reference",
    "summary",
    "sweep_cells",
    "swept_by_default",
    "train_solvers",
    "trained",
    "training_config",
    "training_free_rows",
    "with_differences",
]

if __name__ == "__main__":
    sys.exit(main())
