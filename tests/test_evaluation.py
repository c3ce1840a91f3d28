"""Distances: definitions, exactness of streamed statistics, and the Frechet distance against independent code."""
import importlib

import numpy as np
import pytest
import scipy.linalg
import torch

from gas_nb.compat import import_torchvision
from gas_nb.evaluation import FeatureStatistics, feature_statistics, frechet_distance, l1, l2, psnr


def rows(n, d, seed=0, mean=0.0):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    return mean + normal(n, d) @ normal(d, d)


def streamed(x, batch_size):
    return feature_statistics(lambda b: b, x.split(batch_size))


def distance(a, b):
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def test_per_sample_distances_are_means_over_pixels():
    x, y = rows(6, 12).reshape(6, 3, 2, 2), rows(6, 12, 1).reshape(6, 3, 2, 2)
    loop = torch.stack([(a - b).abs().sum() / 12 for a, b in zip(x, y)])
    torch.testing.assert_close(l1(x, y), loop, rtol=1e-14, atol=0)
    loop = torch.stack([((a - b) ** 2).sum() / 12 for a, b in zip(x, y)])
    torch.testing.assert_close(l2(x, y), loop, rtol=1e-14, atol=0)
    assert l1(x.float(), y.float()).dtype == torch.float64 and l1(x, y).shape == (6,)
    assert torch.equal(l2(x, y), l2(y, x)) and (l1(x, x) == 0).all()
    torch.testing.assert_close(psnr(x, y), 10 * torch.log10(4 / l2(x, y)))
    torch.testing.assert_close(psnr(x / 2, y / 2, data_range=1.0), psnr(x, y))
    assert psnr(x, x).isinf().all()


@pytest.mark.parametrize("distance", [l1, l2, psnr])
def test_shapes_that_would_broadcast_are_refused(distance):
    x = torch.zeros(4, 1, 3, 3)
    for y in (x[:1], x[:, 0], torch.zeros(4, 3, 3, 3), torch.zeros(())):
        with pytest.raises(ValueError, match="differ"):
            distance(x, y)
    with pytest.raises(ValueError, match="batch axis"):
        distance(torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize("n", [2, 63, 64, 65, 500])
def test_statistics_do_not_depend_on_the_batch_size_by_one_bit(n):
    x = rows(n, 20, mean=3.0).float()
    whole = FeatureStatistics().update(x)
    for size in (1, 5, 64, 100):
        part = streamed(x, size)
        assert torch.equal(part.mean, whole.mean) and torch.equal(part.covariance, whole.covariance) and len(part) == n
    expected = torch.from_numpy(np.cov(x.double().numpy(), rowvar=False))
    torch.testing.assert_close(whole.covariance, expected, rtol=1e-11, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits():
    x = rows(1000, 4, mean=1e7)
    naive = (x.T @ x / 1000 - torch.outer(x.mean(0), x.mean(0))) * 1000 / 999
    exact = (x - 1e7).T.cov()
    torch.testing.assert_close(streamed(x, 30).covariance, exact, rtol=1e-6, atol=1e-6)
    assert (naive - exact).abs().max() > 100 * (streamed(x, 30).covariance - exact).abs().max()


def test_reading_does_not_change_a_stream_and_memory_does_not_grow():
    x, s = rows(300, 6), FeatureStatistics()
    for batch in x.split(7):
        s.update(batch)
        assert len(s) < 2 or s.covariance.shape == (6, 6)
        assert len(s._rest) < 64
    assert torch.equal(s.covariance, streamed(x, 300).covariance)


@pytest.mark.parametrize("cut", [0, 1, 64, 100, 299, 300])
def test_merged_streams_equal_one_stream(cut):
    x = rows(300, 6, mean=2.0)
    a, b = FeatureStatistics().update(x[:cut]), FeatureStatistics().update(x[cut:])
    both, whole = a.merge(b), FeatureStatistics().update(x)
    torch.testing.assert_close(both.mean, whole.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(both.covariance, whole.covariance, rtol=1e-12, atol=1e-12)
    assert (len(a), len(b), len(both)) == (cut, 300 - cut, 300)


def test_bad_features_are_refused():
    s = streamed(rows(10, 3), 4)
    nan = torch.full((2, 3), torch.nan)
    for bad, message in ((torch.zeros(3), "need"), (torch.zeros(2, 4), "4 columns"), (nan, "NaN")):
        with pytest.raises(ValueError, match=message):
            s.update(bad)
    assert len(s) == 10
    with pytest.raises(ValueError, match="need at least 2"):
        streamed(rows(1, 3), 1).covariance
    with pytest.raises(ValueError, match="cannot be merged"):
        s.merge(streamed(rows(4, 5), 4))


def test_frechet_distance_agrees_with_matrix_root_and_torchmetrics():
    import_torchvision()
    peer = importlib.import_module("torchmetrics.image.fid")._compute_fid
    for seed in range(5):
        a, b = streamed(rows(200, 16, seed), 50), streamed(rows(300, 16, seed + 50, mean=0.3), 50)
        root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
        by_root = ((a.mean - b.mean) ** 2).sum() + a.covariance.trace() + b.covariance.trace() - 2 * root.trace()
        assert distance(a, b) == pytest.approx(by_root.item(), rel=1e-10)
        assert distance(a, b) == pytest.approx(peer(a.mean, a.covariance, b.mean, b.covariance).item(), rel=1e-10)
        assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-10)


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form():
    rng = np.random.default_rng(1)
    mu, s = rng.normal(size=(2, 30)), rng.uniform(0, 3, size=(2, 30))
    s[0, :5] = 0                                                              # degenerate directions are allowed
    exact = ((mu[0] - mu[1]) ** 2 + (s[0] - s[1]) ** 2).sum()
    assert frechet_distance(mu[0], np.diag(s[0] ** 2), mu[1], np.diag(s[1] ** 2)) == pytest.approx(exact, rel=1e-12)


def test_frechet_distance_with_fewer_samples_than_features():
    a, b = streamed(rows(10, 40), 10), streamed(rows(10, 40, 3), 10)
    assert 0 <= distance(a, a) < 1e-5 * a.covariance.trace()
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-6) and np.isfinite(distance(a, b))


@pytest.mark.parametrize("change, message", [
    (dict(mu2=np.zeros(4)), "second: mean"),
    (dict(mu2=np.zeros(4), sigma2=np.eye(4)), "3 and 4 features"),
    (dict(sigma1=np.ones(3)), "first: mean"),
    (dict(mu1=np.array([0, np.nan, 0])), "first: mean or covariance has NaN"),
    (dict(sigma2=np.full((3, 3), np.inf)), "second: mean or covariance has NaN or infinity"),
    (dict(sigma2=np.triu(np.ones((3, 3)))), "second: the covariance is not symmetric"),
    (dict(sigma1=np.diag([1.0, 1.0, -0.5])), "first: the covariance has the negative eigenvalue -0.5"),
    (dict(mu1=np.zeros(0), sigma1=np.zeros((0, 0))), "first: mean"),
])
def test_what_is_no_gaussian_is_refused(change, message):
    good = dict(mu1=np.zeros(3), sigma1=np.eye(3), mu2=np.zeros(3), sigma2=np.eye(3))
    with pytest.raises(ValueError, match=message):
        frechet_distance(**(good | change))


@pytest.mark.cuda
def test_statistics_of_cuda_features():
    x = rows(200, 8).float()
    assert torch.equal(streamed(x.cuda(), 30).covariance, streamed(x, 30).covariance)
