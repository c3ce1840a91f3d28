"""The paper's settings under their former name: everything is made in `gas_nb.teachers.paper`."""

from .paper import (
    GITS_SIGMAS,
    SETTINGS,
    Setting,
    check_setting,
    gits_tableau,
    load_paper_teacher,
    read_prompts,
    setting,
    train_options,
)

__all__ = [
    "GITS_SIGMAS",
    "SETTINGS",
    "Setting",
    "check_setting",
    "gits_tableau",
    "load_paper_teacher",
    "read_prompts",
    "setting",
    "train_options",
]
