"""Metrics: what they are, what they need, and the judge that measures solvers by them.

The order of these imports is the order in which metrics are registered, so that of columns.
"""

from .spec import Metric, all_metrics, find_metric, forget_metric, register_metric
from .distances import by_frame, l1, l2, psnr, structural_similarity
from .features import feature_network, inception_features, lpips_distance
from .texts import clip_score, hpsv2, image_reward, pick_score
from .moments import FeatureStatistics, feature_statistics
from .distributions import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from .uncertainty import Estimate, jackknife, paired_difference, samples_needed
from .costs import COSTS, Meter, Spent, costs
from .samples import sample_pairs
from .reference import Reference, load_reference
from .judge import Judge, evaluate, frechet, measure
from .search import best_classic

__all__ = [
    "COSTS",
    "Estimate",
    "FeatureStatistics",
    "Judge",
    "Meter",
    "Metric",
    "Reference",
    "Spent",
    "all_metrics",
    "best_classic",
    "by_frame",
    "clip_score",
    "costs",
    "density_coverage",
    "evaluate",
    "feature_network",
    "feature_statistics",
    "find_metric",
    "forget_metric",
    "frechet",
    "frechet_distance",
    "hpsv2",
    "image_reward",
    "inception_features",
    "jackknife",
    "kernel_distance",
    "l1",
    "l2",
    "load_reference",
    "lpips_distance",
    "measure",
    "paired_difference",
    "pick_score",
    "precision_recall",
    "psnr",
    "register_metric",
    "sample_pairs",
    "samples_needed",
    "structural_similarity",
]
