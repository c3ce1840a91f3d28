"""Training: settings, presets, the distance, a run's memory, its phases and the loop.

`from gas_nb.training import TrainConfig, train` is all that most programs need.
"""

from ..runs import PHASES, RunLog, open_run, results_folder, run_name
from ..runtime.checks import check_flag, check_number, check_text, check_whole
from .config import TrainConfig
from .distance import check_lpips, lpips_features, make_distance
from .loop import StepRecord, rehearse, train, validate
from .pairs import make_eval_pairs, make_training_pairs
from .phases import NonFiniteLoss, draw_batch, draw_fresh, gas_step, gs_step, split_held_out
from .presets import DIGITS, PRESETS, preset_config, resolve, teacher_of
from .state import TrainState, load_state, make_discriminator

__all__ = [
    "DIGITS",
    "PHASES",
    "PRESETS",
    "NonFiniteLoss",
    "RunLog",
    "StepRecord",
    "TrainConfig",
    "TrainState",
    "check_flag",
    "check_lpips",
    "check_number",
    "check_text",
    "check_whole",
    "draw_batch",
    "draw_fresh",
    "gas_step",
    "gs_step",
    "load_state",
    "lpips_features",
    "make_discriminator",
    "make_distance",
    "make_eval_pairs",
    "make_training_pairs",
    "open_run",
    "preset_config",
    "rehearse",
    "resolve",
    "results_folder",
    "run_name",
    "split_held_out",
    "teacher_of",
    "train",
    "validate",
]
