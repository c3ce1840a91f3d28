"""Teacher pairs: seeds and noise, pairs in memory, and pairs on disk in checked shards."""

from .folder import PairDataset, generate_pairs, pairs_folder, pairs_in_steps
from .identity import MEASURED, answers_gap, teacher_differences, told
from .making import CHUNK, LARGE, PairTeacher, even_chunk, finish, make_pairs, noise_for
from .manifest import FORMAT, MANIFEST, VERSION, read_manifest
from .pairs import Pairs, batch_indices, concatenate
from .seeds import (
    EVAL_SEED,
    MAX_SEED,
    TRAIN_SEED,
    check_shape,
    eval_seeds,
    is_whole,
    noise,
    random_labels,
    require_whole,
    train_seeds,
)

__all__ = [
    "CHUNK",
    "EVAL_SEED",
    "FORMAT",
    "LARGE",
    "MANIFEST",
    "MAX_SEED",
    "MEASURED",
    "PairDataset",
    "PairTeacher",
    "Pairs",
    "TRAIN_SEED",
    "VERSION",
    "answers_gap",
    "batch_indices",
    "check_shape",
    "concatenate",
    "eval_seeds",
    "even_chunk",
    "finish",
    "generate_pairs",
    "is_whole",
    "make_pairs",
    "noise",
    "noise_for",
    "pairs_folder",
    "pairs_in_steps",
    "random_labels",
    "require_whole",
    "teacher_differences",
    "told",
    "train_seeds",
    "read_manifest",
]
