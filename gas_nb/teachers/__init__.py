"""Teachers: what one is, and those of the package.

The order of these imports is the order in which teachers are registered and offered.
"""

from .base import (
    FORMS,
    RECIPE,
    TEACHERS,
    Teacher,
    TeacherForm,
    TeacherSpec,
    load_teacher,
    register_form,
    register_teacher,
    teacher_kind,
    teacher_spec,
)
from .digits import load_digits_teacher
from .fmnist import load_fmnist_teacher
from .diffusers import DiffusersTeacher, load_diffusers_teacher
from .edm import load_edm_teacher
from .function import function_teacher
from .paper import load_paper_teacher

__all__ = [
    "FORMS",
    "RECIPE",
    "TEACHERS",
    "DiffusersTeacher",
    "Teacher",
    "TeacherForm",
    "TeacherSpec",
    "function_teacher",
    "load_diffusers_teacher",
    "load_digits_teacher",
    "load_edm_teacher",
    "load_fmnist_teacher",
    "load_paper_teacher",
    "load_teacher",
    "register_form",
    "register_teacher",
    "teacher_kind",
    "teacher_spec",
]
