"""Training: settings, presets, the distance, a run's memory, its phases and the loop.

`from gas_nb.training import TrainConfig, train` is all that most programs need.
"""

from ..runs import PHASES, RunLog, open_run, results_folder, run_name
from ..runtime.checks import check_flag, check_number, check_text, check_whole
from .budget import plan_of, planned
from .checkpoint import load_state, save_state
from .config import TrainConfig
from .distance import check_lpips, lpips_features, make_distance
from .loop import StepRecord, rehearse, train
from .pairs import draw_batch, draw_fresh, make_eval_pairs, make_training_pairs, split_held_out
from .parameters import resolve
from .phases import NonFiniteLoss, gas_step, gs_step, validate
from .presets import DIGITS, PRESETS, check_calls, preset_config, teacher_of
from .state import TrainState, has_played, make_discriminator

__all__ = [
    "DIGITS",
    "PHASES",
    "PRESETS",
    "NonFiniteLoss",
    "RunLog",
    "StepRecord",
    "TrainConfig",
    "TrainState",
    "check_calls",
    "check_flag",
    "check_lpips",
    "check_number",
    "check_text",
    "check_whole",
    "draw_batch",
    "draw_fresh",
    "gas_step",
    "gs_step",
    "has_played",
    "load_state",
    "lpips_features",
    "make_discriminator",
    "make_distance",
    "make_eval_pairs",
    "make_training_pairs",
    "open_run",
    "plan_of",
    "planned",
    "preset_config",
    "rehearse",
    "resolve",
    "results_folder",
    "run_name",
    "save_state",
    "split_held_out",
    "teacher_of",
    "train",
    "validate",
]
