"""A workbench that distils few-step solvers for diffusion and flow models.

The names below are the front door; each is loaded when it is first asked for. Everything else is a
module of its own: see the map in CONTRIBUTING.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gas_nb.classic import classic_tableau, ddim, deis, dpm_solver_pp, ipndm, unipc
    from gas_nb.data import Pairs, make_pairs
    from gas_nb.denoiser import Denoiser
    from gas_nb.discriminator import Discriminator
    from gas_nb.evaluation import Judge, best_classic
    from gas_nb.front import Distilled, distil_solver, join_solvers, load_solver
    from gas_nb.interop import GASScheduler, load_published_checkpoint, shipped_scheduler
    from gas_nb.registry import SolverSpec, register_solver
    from gas_nb.schedule import NoiseSchedule, spacing
    from gas_nb.solver import GeneralizedSolver
    from gas_nb.tableau import Tableau, sample
    from gas_nb.teacher import Teacher, load_teacher
    from gas_nb.training import TrainConfig, train

__all__ = [
    "Denoiser",
    "Discriminator",
    "Distilled",
    "GASScheduler",
    "GeneralizedSolver",
    "Judge",
    "NoiseSchedule",
    "Pairs",
    "SolverSpec",
    "Tableau",
    "Teacher",
    "TrainConfig",
    "best_classic",
    "classic_tableau",
    "ddim",
    "deis",
    "distil_solver",
    "dpm_solver_pp",
    "ipndm",
    "join_solvers",
    "load_published_checkpoint",
    "load_solver",
    "load_teacher",
    "make_pairs",
    "register_solver",
    "sample",
    "shipped_scheduler",
    "spacing",
    "train",
    "unipc",
]

_ROOMS = {
    "classic": ("classic_tableau", "ddim", "deis", "dpm_solver_pp", "ipndm", "unipc"),
    "data": ("Pairs", "make_pairs"),
    "denoiser": ("Denoiser",),
    "discriminator": ("Discriminator",),
    "evaluation": ("Judge", "best_classic"),
    "front": ("Distilled", "distil_solver", "join_solvers", "load_solver"),
    "interop": ("GASScheduler", "load_published_checkpoint", "shipped_scheduler"),
    "registry": ("SolverSpec", "register_solver"),
    "schedule": ("NoiseSchedule", "spacing"),
    "solver": ("GeneralizedSolver",),
    "tableau": ("Tableau", "sample"),
    "teacher": ("Teacher", "load_teacher"),
    "training": ("TrainConfig", "train"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gas_nb' has no attribute {name!r}")
    return getattr(import_module(f"gas_nb.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
