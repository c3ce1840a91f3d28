"""How far samples are from the teacher's: every public name of the chapters in nbs/metrics."""

from gas_nb.metrics.spec import Metric, all_metrics, find_metric, forget_metric, register_metric
from gas_nb.metrics.distances import l1, l2, psnr
from gas_nb.metrics.moments import FeatureStatistics, feature_statistics
from gas_nb.metrics.distributions import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from gas_nb.metrics.features import (
    FEATURES,
    INCEPTION_WEIGHTS,
    LPIPS_WEIGHTS,
    feature_network,
    inception_features,
    inception_weights,
    lpips_distance,
)
from gas_nb.metrics.samples import block_size, blocks, fill, sample_block, sample_pairs
from gas_nb.metrics.reference import (
    IMAGE_FILES,
    Reference,
    image_batches,
    load_reference,
    read_fid_reference,
)
from gas_nb.metrics.judge import (
    DISTRIBUTIONS,
    METRICS,
    PAIRED,
    RUN_METRICS,
    Judge,
    evaluate,
    frechet,
    measure,
)
from gas_nb.metrics.search import SOLVER_ORDERS, best_classic

__all__ = [
    "DISTRIBUTIONS",
    "FEATURES",
    "FeatureStatistics",
    "IMAGE_FILES",
    "INCEPTION_WEIGHTS",
    "Judge",
    "LPIPS_WEIGHTS",
    "METRICS",
    "Metric",
    "PAIRED",
    "RUN_METRICS",
    "Reference",
    "SOLVER_ORDERS",
    "all_metrics",
    "best_classic",
    "block_size",
    "blocks",
    "density_coverage",
    "evaluate",
    "feature_network",
    "feature_statistics",
    "fill",
    "find_metric",
    "forget_metric",
    "frechet",
    "frechet_distance",
    "image_batches",
    "inception_features",
    "inception_weights",
    "kernel_distance",
    "l1",
    "l2",
    "load_reference",
    "lpips_distance",
    "measure",
    "precision_recall",
    "psnr",
    "read_fid_reference",
    "register_metric",
    "sample_block",
    "sample_pairs",
]
