"""Distances: definitions, exactness of streams, the Frechet distance against independent code."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from gas_nb.classic import classic_tableau
from gas_nb.runtime.device import import_torchvision
from gas_nb.data import eval_seeds, make_pairs
from gas_nb.evaluation import (
    LPIPS_WEIGHTS,
    METRICS,
    RUN_METRICS,
    FeatureStatistics,
    Judge,
    density_coverage,
    evaluate,
    feature_statistics,
    find_metric,
    frechet,
    frechet_distance,
    inception_features,
    kernel_distance,
    l1,
    l2,
    load_reference,
    lpips_distance,
    measure,
    precision_recall,
    psnr,
    sample_pairs,
)
from gas_nb.teacher import load_teacher


def rows(n, d, seed=0, mean=0.0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

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
        assert (
            torch.equal(part.mean, whole.mean)
            and torch.equal(part.covariance, whole.covariance)
            and len(part) == n
        )
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
        by_root = (
            ((a.mean - b.mean) ** 2).sum()
            + a.covariance.trace()
            + b.covariance.trace()
            - 2 * root.trace()
        )
        assert distance(a, b) == pytest.approx(by_root.item(), rel=1e-10)
        assert distance(a, b) == pytest.approx(
            peer(a.mean, a.covariance, b.mean, b.covariance).item(), rel=1e-10
        )
        assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-10)


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form():
    rng = np.random.default_rng(1)
    mu, s = rng.normal(size=(2, 30)), rng.uniform(0, 3, size=(2, 30))
    s[0, :5] = 0  # degenerate directions are allowed
    exact = ((mu[0] - mu[1]) ** 2 + (s[0] - s[1]) ** 2).sum()
    assert frechet_distance(mu[0], np.diag(s[0] ** 2), mu[1], np.diag(s[1] ** 2)) == pytest.approx(
        exact, rel=1e-12
    )


def test_frechet_distance_with_fewer_samples_than_features():
    a, b = streamed(rows(10, 40), 10), streamed(rows(10, 40, 3), 10)
    assert 0 <= distance(a, a) < 1e-5 * a.covariance.trace()
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-6) and np.isfinite(distance(a, b))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mu2=np.zeros(4)), "second: mean"),
        (dict(mu2=np.zeros(4), sigma2=np.eye(4)), "3 and 4 features"),
        (dict(sigma1=np.ones(3)), "first: mean"),
        (dict(mu1=np.array([0, np.nan, 0])), "first: mean or covariance has NaN"),
        (dict(sigma2=np.full((3, 3), np.inf)), "second: mean or covariance has NaN or infinity"),
        (dict(sigma2=np.triu(np.ones((3, 3)))), "second: the covariance is not symmetric"),
        (
            dict(sigma1=np.diag([1.0, 1.0, -0.5])),
            "first: the covariance has the negative eigenvalue -0.5",
        ),
        (dict(mu1=np.zeros(0), sigma1=np.zeros((0, 0))), "first: mean"),
    ],
)
def test_what_is_no_gaussian_is_refused(change, message):
    good = dict(mu1=np.zeros(3), sigma1=np.eye(3), mu2=np.zeros(3), sigma2=np.eye(3))
    with pytest.raises(ValueError, match=message):
        frechet_distance(**(good | change))


@pytest.mark.cuda
def test_statistics_of_cuda_features():
    x = rows(200, 8).float()
    assert torch.equal(streamed(x.cuda(), 30).covariance, streamed(x, 30).covariance)


# --- kernel distance, precision and recall, density and
# coverage: against published implementations and definitions


def normal(n, d, seed, shift=0.0):
    return shift + torch.randn(
        n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_kernel_distance_agrees_with_torch_fidelity_and_torchmetrics():
    import_torchvision()
    fidelity = importlib.import_module("torch_fidelity.metric_kid")
    poly_mmd = importlib.import_module("torchmetrics.image.kid").poly_mmd
    options = dict(
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
    )
    for seed in range(3):
        a, b = normal(300, 16, seed), normal(300, 16, seed + 10, 0.2)
        ours = kernel_distance(a, b)
        assert ours == pytest.approx(fidelity.kernel_mmd(a.numpy(), b.numpy(), **options), rel=1e-9)
        assert ours == pytest.approx(poly_mmd(a, b).item(), rel=1e-9)
        assert kernel_distance(b, a) == pytest.approx(ours, rel=1e-9)


def test_kernel_distance_is_unbiased_and_not_for_equal_numbers_only():
    values = [kernel_distance(normal(40, 4, s), normal(70, 4, 1000 + s)) for s in range(200)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5


def balls(x, k):
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    return np.sort(d, axis=1)[:, k]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_and_coverage_follow_their_definitions(k):
    fidelity = importlib.import_module("torch_fidelity.metric_prc")
    for seed in range(3):
        x, y = normal(61, 5, seed), normal(83, 5, seed + 20, 0.4)
        d = np.linalg.norm(x.numpy()[:, None] - y.numpy()[None], axis=-1)
        real, generated = balls(y.numpy(), k), balls(x.numpy(), k)
        expected = (d <= real).any(1).mean(), (d.T <= generated).any(1).mean()
        assert precision_recall(x, y, k) == pytest.approx(expected)
        assert precision_recall(x, y, k) == pytest.approx(
            fidelity.calculate_precision_recall_full(x, y, k)
        )
        assert density_coverage(x, y, k) == pytest.approx(
            ((d <= real).sum() / k / len(x), (d <= real).any(0).mean())
        )


def test_more_rows_than_one_block_give_the_same_answer():
    x, y = normal(1100, 3, 0), normal(1300, 3, 1)
    p, r = precision_recall(x, y)
    assert p == pytest.approx(
        ((torch.cdist(x, y) <= torch.from_numpy(balls(y.numpy(), 3))).any(1)).double().mean().item()
    )
    assert 0.9 < r <= 1 and density_coverage(x, x)[1] == 1.0


@pytest.mark.parametrize("f", [kernel_distance, precision_recall, density_coverage])
def test_feature_sets_that_do_not_fit_are_refused(f):
    for x, y, message in (
        (normal(9, 3, 0), normal(9, 4, 0), "need"),
        (normal(9, 3, 0), normal(1, 3, 0), "at least"),
        (normal(9, 3, 0) * torch.nan, normal(9, 3, 0), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            f(x, y)


# --- Inception and LPIPS: wired up with random weights, no download


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A weights file of the right shape with random numbers in it: 95 MB that no test downloads."""
    import_torchvision()
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    load, module.torch.load = module.torch.load, lambda *a, **k: None
    strict, module.FeatureExtractorInceptionV3.load_state_dict = (
        module.FeatureExtractorInceptionV3.load_state_dict,
        lambda *a: None,
    )
    torch.manual_seed(0)
    try:
        net = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path="none"
        )
    finally:
        module.torch.load, module.FeatureExtractorInceptionV3.load_state_dict = load, strict
    torch.save(net.state_dict(), path)
    return path, net


@pytest.mark.slow
def test_inception_features_are_those_of_torch_fidelity(random_inception):
    path, net = random_inception
    f, x = inception_features(path), torch.rand(2, 1, 32, 32) * 2 - 1
    expected = net(((x + 1) * 127.5).round().byte().expand(-1, 3, -1, -1))[0]
    assert f(x).shape == (2, 2048) and torch.equal(f(x), expected)


def test_missing_or_wrong_inception_weights_are_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    digits = load_teacher("digits", "cpu")
    monkeypatch.setattr(type(digits.denoiser.net), "forward", None)  # any sampling would fail
    with pytest.raises(FileNotFoundError, match="weights-inception-2015-12-05.*download.*weights="):
        Judge(digits, features="inception", reference=(torch.zeros(2048), torch.eye(2048)))
    with pytest.raises(FileNotFoundError, match="alexnet"):
        Judge(digits, "l1 lpips")
    torch.save({"code": np.dtype("float64").newbyteorder}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="does not hold weights"):
        inception_features(tmp_path / "evil.pth")


def test_lpips_is_that_of_its_package(monkeypatch, tmp_path):
    lpips = pytest.importorskip("lpips")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LPIPS_WEIGHTS).touch()
    net = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False).eval()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: net)
    x, y = torch.rand(3, 1, 32, 32) * 2 - 1, torch.rand(3, 1, 32, 32) * 2 - 1
    f = lpips_distance()
    torch.testing.assert_close(
        f(x, y), net(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).flatten()
    )
    assert (f(x, x) == 0).all()
    with pytest.raises(ValueError, match="at least 32"):
        f(x[..., :8, :8], y[..., :8, :8])


# --- references and whole tables


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture(scope="module")
def table(digits):
    steps = {n: classic_tableau(n, digits.schedule, 5, "logSNR", 1e-3) for n in ("ddim", "unipc")}
    return (
        list(steps.values()),
        make_pairs(digits, eval_seeds(83), "random"),
        digits.denoiser.net.centres.reshape(-1, 1, 8, 8),
    )


def untimed(rows):
    return [{k: v for k, v in row.items() if k != "seconds_per_image"} for row in rows]


def test_a_table_does_not_depend_on_batches_by_one_bit(digits, table):
    tableaus, pairs, real = table
    judge = Judge(digits, reference=real)
    cheap = {name for name in METRICS if find_metric(name).auto}
    assert set(judge.metrics) == cheap - {"lpips", "ssim"}  # of 32 and 11 pixels on
    whole = untimed(judge(tableaus, pairs))
    for size in (1, 17, 50, 64):
        parts = (
            pairs[i : i + size] for i in range(0, len(pairs), size)
        )  # a stream that can be read once
        assert untimed(judge(tableaus, parts)) == whole
    assert untimed(Judge(replace(digits, batch_size=3), reference=real)(tableaus, pairs)) == whole
    assert [untimed(judge(t, pairs))[0] for t in tableaus] == whole
    json.dumps(whole, allow_nan=False)


def test_samples_made_before_get_the_figures_of_those_made_now(digits, table):
    tableaus, pairs, _ = table
    judge = Judge(digits, RUN_METRICS)
    for tableau, row in zip(tableaus, judge(tableaus, pairs)):
        x = sample_pairs(digits, tableau, pairs)
        expected = {name: row[name] for name in RUN_METRICS}
        assert judge.compare(x, pairs.x_0) == expected
        measured, again = measure(digits, tableau, pairs, digits.reference())
        assert expected.items() <= measured.items() and torch.equal(again, x)
        assert frechet(digits, x, digits.reference()) == row["frechet"]
        assert measure(digits, tableau, pairs)[0]["frechet"] is None
    with pytest.raises(ValueError, match="no pairs"):
        judge.compare(x[:0], pairs.x_0[:0])


def test_a_table_holds_what_the_formulas_say(digits, table):
    tableaus, pairs, real = table
    rows = evaluate(digits, tableaus, pairs, reference=real, keep=60)
    for row, tableau in zip(rows, tableaus):
        x = sample_pairs(digits, tableau, pairs)
        f, y = x.flatten(1).double(), real.flatten(1).double()[:60]
        assert row["n"] == 83 and row["nfe"] == 5 and row["seconds_per_image"] > 0
        for name, g in dict(l1=l1, l2=l2, psnr=psnr).items():
            assert row[name] == pytest.approx(g(x, pairs.x_0).mean().item(), rel=1e-12)
        cov = real.flatten(1).double().T.cov(), f.T.cov()
        exact = frechet_distance(f.mean(0), cov[1], real.flatten(1).double().mean(0), cov[0])
        assert row["frechet"] == pytest.approx(exact, rel=1e-5)
        assert row["kid"] == pytest.approx(
            kernel_distance(f[:60], y), rel=1e-9
        )  # at most `keep` rows
        assert (row["precision"], row["recall"]) == pytest.approx(precision_recall(f[:60], y))
        assert (row["density"], row["coverage"]) == pytest.approx(density_coverage(f[:60], y))


def test_the_teacher_itself_is_at_distance_zero(digits, table):
    row = evaluate(digits, digits.tableau, table[1], metrics="l1 l2 psnr")[0]
    assert row["l1"] == row["l2"] == 0 and row["psnr"] is None


def test_references_from_a_folder_a_dataset_and_an_npz_agree(digits, tmp_path):
    images = (torch.rand(130, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).byte()
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:03d}.png")

    def flat(x):
        return x.flatten(1)

    folder, dataset = (
        load_reference(tmp_path, flat, 1, keep=100),
        load_reference(images, flat, 1, keep=100),
    )
    assert torch.equal(folder.mean, dataset.mean) and torch.equal(
        folder.covariance, dataset.covariance
    )
    assert folder.digest == dataset.digest and folder.features.shape == (100, 64)
    np.savez(tmp_path / "ref.npz", mu=folder.mean, sigma=folder.covariance)
    npz = load_reference(tmp_path / "ref.npz", flat)
    assert torch.equal(npz.mean, folder.mean) and npz.features is None
    rows = [
        evaluate(digits, digits.tableau, make_pairs(digits, range(6)), reference=r)[0]
        for r in (tmp_path / "ref.npz", images)
    ]
    assert rows[0]["frechet"] == rows[1]["frechet"] and "kid" in rows[1] and "kid" not in rows[0]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x80\x04."])
def test_a_damaged_npz_is_named_and_never_unpickled(tmp_path, content):
    (tmp_path / "ref.npz").write_bytes(content)
    with pytest.raises(ValueError, match="ref.npz is no .npz with arrays"):
        load_reference(tmp_path / "ref.npz", lambda x: x)
    np.savez(tmp_path / "ref.npz", mu=np.array([print], dtype=object), sigma=np.eye(1))
    with pytest.raises(ValueError, match="is no .npz"):
        load_reference(tmp_path / "ref.npz", lambda x: x)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        load_reference(tmp_path / "none.npz", lambda x: x)
