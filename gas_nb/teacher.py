"""Teachers under one short name: everything is made in `gas_nb.teachers`."""

from .teachers import TEACHERS
from .teachers.base import (
    RECIPE,
    Teacher,
    TeacherForm,
    TeacherSpec,
    check_network,
    check_options,
    checked_names,
    checked_recipe,
    flat,
    load_teacher,
    measured,
    no_reference,
    numbered,
    plain,
    recipe_tableau,
    register_form,
    register_teacher,
    teacher_kind,
    teacher_spec,
    to_uint8,
    unchanged,
)
from .teachers.digits import GaussianMixture, load_digits_teacher
from .teachers.fmnist import FMNIST_CLASSES, LabelledUNet, load_fmnist_teacher
from .teachers.function import function_teacher
from .teachers.paper import PAPER_SETTINGS

__all__ = [
    "FMNIST_CLASSES",
    "PAPER_SETTINGS",
    "RECIPE",
    "TEACHERS",
    "GaussianMixture",
    "LabelledUNet",
    "Teacher",
    "TeacherForm",
    "TeacherSpec",
    "check_network",
    "check_options",
    "checked_names",
    "checked_recipe",
    "flat",
    "function_teacher",
    "load_digits_teacher",
    "load_fmnist_teacher",
    "load_teacher",
    "measured",
    "no_reference",
    "numbered",
    "plain",
    "recipe_tableau",
    "register_form",
    "register_teacher",
    "teacher_kind",
    "teacher_spec",
    "to_uint8",
    "unchanged",
]
