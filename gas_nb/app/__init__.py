"""The app: one page to compare, look inside, train and take along few-step solvers.

Public names of the chapters in nbs/app and of nbs/05_app.ipynb, under one roof.
`python -m gas_nb.app` serves the page.
"""

from gas_nb.runtime.extras import needs

with needs("app"):
    import gradio  # noqa: F401
    import plotly  # noqa: F401

from .answer import Cell, classic_for, find_tableau, generate, run_cell
from .ask import (
    DEFAULT,
    MAX_EVALUATIONS,
    MAX_SAMPLES,
    NFES,
    ORDER,
    SPACED,
    Ask,
    condition_choices,
    make_ask,
)
from .catalog import (
    MAX_FILE,
    MAX_STUDENT_NFE,
    Trained,
    read_solver,
    run_solvers,
    shipped_solvers,
)
from .desk import Busy, Desk, Place
from .files import MAX_UPLOADS, add_upload, python_lines, scheduler_zip
from .html import WAITING, detail_html, grid_html, picture
from .inside import follow
from .jobs import SIZES, Job
from .messages import in_words, status, told, wait_in_line
from .page import INTRO, build, check_address, main, warm_up
from .style import CSS, launch_options
from .tabs.compare import PICK
from .workbench import Workbench, first_question

__all__ = [
    "CSS",
    "DEFAULT",
    "INTRO",
    "MAX_EVALUATIONS",
    "MAX_FILE",
    "MAX_SAMPLES",
    "MAX_STUDENT_NFE",
    "MAX_UPLOADS",
    "NFES",
    "ORDER",
    "PICK",
    "SIZES",
    "SPACED",
    "WAITING",
    "Ask",
    "Busy",
    "Cell",
    "Desk",
    "Job",
    "Place",
    "Trained",
    "Workbench",
    "add_upload",
    "build",
    "check_address",
    "classic_for",
    "condition_choices",
    "detail_html",
    "find_tableau",
    "first_question",
    "follow",
    "generate",
    "grid_html",
    "in_words",
    "launch_options",
    "main",
    "make_ask",
    "picture",
    "python_lines",
    "read_solver",
    "run_cell",
    "run_solvers",
    "scheduler_zip",
    "shipped_solvers",
    "status",
    "told",
    "wait_in_line",
    "warm_up",
]
