"""The discriminator and its losses: published numbers, the formulas by hand, refusals."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from gas_nb.discriminator import Discriminator, discriminator_loss, generator_loss

GOLDEN = Path(__file__).parent / "golden"
NUMBERS = np.load(GOLDEN / "r3gan_discriminator.npz")
CASES = {
    case["case"]: case for case in json.loads((GOLDEN / "r3gan_discriminator.json").read_text())
}
CLOSE = {"rtol": 1e-6, "atol": 1e-12}


def arrays(name):
    values = {
        k.removeprefix(f"{name}."): torch.from_numpy(NUMBERS[k])
        for k in NUMBERS
        if k.startswith(f"{name}.")
    }
    return {
        k.removeprefix("state."): values.pop(k) for k in list(values) if k.startswith("state.")
    }, values


def build(name):
    """The case's network from its settings, and the case's arrays."""
    case, (state, values) = CASES[name], arrays(name)
    condition = {}
    if case["cond"]:
        embedding_dim, condition_dim = state["EmbeddingLayer.weight"].shape
        condition = {"condition_dim": condition_dim, "embedding_dim": embedding_dim}
    D = Discriminator(
        case["in_ch"],
        case["widths"],
        case["cards"],
        case["blocks"],
        case["expansion_factor"],
        **condition,
    )
    return D.double().load_published_state(state), state, values


def small(**settings):
    torch.manual_seed(0)
    return Discriminator(1, [8, 12], [2, 3], [1, 2], **settings)


def roughen(D):
    """Weights drawn anew: a fresh network is linear, which hides mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in D.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return D


@pytest.mark.parametrize("name", CASES)
def test_published_losses(name):
    D, _, v = build(name)
    assert_close(D(v["real"]), v["real_logits"], **CLOSE)
    assert_close(D(v["fake"]), v["fake_logits"], **CLOSE)
    d = discriminator_loss(D, v["real"], v["fake"], CASES[name]["gamma"])
    assert_close(d.adversarial, v["d_adversarial"], **CLOSE)
    assert_close(d.r1, v["r1"], **CLOSE)
    assert_close(d.r2, v["r2"], **CLOSE)
    assert_close(d.loss, v["d_loss"], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_published_gradients(name):
    D, state, v = build(name)
    discriminator_loss(D, v["real"], v["fake"], CASES[name]["gamma"]).loss.mean().backward()
    published = {
        k: value
        for k, value in state.items()
        if not k.endswith("Kernel") and k != "EmbeddingLayer.weight"
    }
    norms = CASES[name]["d_param_grad_norms"]
    assert set(norms) == set(published)
    ours = {n: p for n, p in D.named_parameters() if n != "embedding.weight"}
    by_value = {
        k: next(p for p in ours.values() if torch.equal(p, w)) for k, w in published.items()
    }
    for k, p in by_value.items():
        assert p.grad.norm().item() == pytest.approx(norms[k], rel=1e-6)
    if D.embedding is not None:
        assert D.embedding.weight.grad is None

    fake = v["fake"].clone().requires_grad_()
    loss = generator_loss(D, v["real"], fake)
    assert_close(loss, v["g_loss"], **CLOSE)
    assert_close(torch.autograd.grad(loss.mean(), fake)[0], v["g_grad_fake"], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_architecture_is_read_off_the_published_state(name):
    D, state, v = build(name)
    again = Discriminator.from_published_state(state)
    assert again.stem.weight.dtype == torch.float64
    assert_close(again(v["real"]), D(v["real"]), rtol=0, atol=0)


def renamed(state):
    return {
        ("Stem.weight" if k == "ExtractionLayer.Layer.weight" else k): w for k, w in state.items()
    }


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: {
                k: w for k, w in s.items() if k != "MainLayers.1.Layers.0.NonLinearity1.Bias"
            },
            "lacks MainLayers.1.Layers.0.NonLinearity1.Bias",
        ),
        (
            lambda s: {k: w for k, w in s.items() if not k.endswith("Kernel")},
            "lacks MainLayers.0.Layers.2.Resampler.Kernel",
        ),
        (
            lambda s: {**s, "MainLayers.2.Layers.0.Basis.weight": torch.zeros(1)},
            "not have: MainLayers.2.Layers.0.Basis.weight",
        ),
        (renamed, "lacks ExtractionLayer.Layer.weight"),
        (
            lambda s: {**s, "MainLayers.1.Layers.2.LinearLayer.weight": torch.zeros(2, 8)},
            "MainLayers.1.Layers.2.LinearLayer.weight must hold floats of shape "
            "(1, 8), got torch.float32 of shape (2, 8)",
        ),
        (
            lambda s: {**s, "MainLayers.1.Layers.2.LinearLayer.weight": [0.0] * 8},
            "must be a tensor, got list",
        ),
    ],
)
def test_state_that_does_not_fit_changes_nothing(change, message):
    D, state, _ = build("case01")
    state = {k: w + 1 for k, w in state.items()}
    before = copy.deepcopy(D.state_dict())
    with pytest.raises(ValueError) as error:
        D.load_published_state(change(state))
    assert message in str(error.value)
    assert all(torch.equal(before[k], w) for k, w in D.state_dict().items())


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"a": torch.zeros(1)},
        {"MainLayers.0.Layers.0.Basis.weight": torch.zeros(1)},
        {"MainLayers.0.Layers.0.LinearLayer1.Layer.weight": torch.zeros(3)},
    ],
)
def test_foreign_state_is_refused(state):
    with pytest.raises(ValueError, match="not the published state of an R3GAN discriminator"):
        Discriminator.from_published_state(state)


def test_penalty_of_a_linear_discriminator_by_hand():
    w = torch.randn(3, 4, 4, dtype=torch.float64)
    real, fake = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)

    def D(x):
        return (x * w).flatten(1).sum(1)

    d = discriminator_loss(D, real, fake, gamma=0.5)
    norm = w.square().sum().expand(5)
    assert_close(d.r1, norm)
    assert_close(d.r2, norm)
    difference = D(real) - D(fake)
    assert_close(d.adversarial, torch.log1p(torch.exp(-difference)))
    assert_close(d.loss, d.adversarial + 0.5 * norm)
    assert_close(generator_loss(D, real, fake), torch.log1p(torch.exp(difference)))


def test_parameter_gradient_of_the_penalty_agrees_with_finite_differences():
    D = roughen(small().double())
    real, fake = torch.randn(
        2, 3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    weight = D.stages[0][0].grouped.weight

    def objective():
        return discriminator_loss(D, real, fake, gamma=3.0).loss.mean()

    (gradient,) = torch.autograd.grad(objective(), weight)
    direction, h = torch.randn_like(weight), 1e-6
    with torch.no_grad():
        values = []
        for s in (h, -h):
            weight += s * direction
            values.append(objective())
            weight -= s * direction
    assert_close(
        (values[0] - values[1]) / (2 * h), (gradient * direction).sum(), rtol=1e-5, atol=1e-8
    )


def test_players_mirror_each_other_and_samples_are_independent():
    D = roughen(small().double())
    real, fake = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    d, swapped = discriminator_loss(D, real, fake), discriminator_loss(D, fake, real)
    assert_close(d.r1, swapped.r2)
    assert_close(d.adversarial, generator_loss(D, fake, real))
    assert_close(generator_loss(D, real, real), torch.full((4,), 2.0, dtype=torch.float64).log())
    one = discriminator_loss(D, real[2:3], fake[2:3])
    for field, value in one._asdict().items():
        assert_close(value, getattr(d, field)[2:3])


def test_losses_touch_nothing_but_their_own_graph():
    D = roughen(small())
    real, fake = torch.randn(2, 4, 1, 8, 8)
    fake.requires_grad_()
    d = discriminator_loss(D, real, fake)
    d.loss.mean().backward()
    assert fake.grad is None and not real.requires_grad
    assert all(p.grad is not None for p in D.parameters())
    D.zero_grad()
    loss = generator_loss(D, real, fake)
    assert fake.grad is None and all(p.grad is None for p in D.parameters())
    loss.mean().backward()
    assert fake.grad.abs().sum() > 0
    with torch.no_grad():
        again = discriminator_loss(D, real, fake)
    assert not again.loss.requires_grad
    assert_close(again.loss, d.loss.detach())


def test_autocast_is_off_in_the_penalty_and_half_precision_images_are_raised():
    D = roughen(small())
    real, fake = torch.randn(2, 4, 1, 8, 8)
    expected = discriminator_loss(D, real, fake)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert D(real).dtype == torch.bfloat16
        under = discriminator_loss(D, real, fake)
    assert_close(under.loss, expected.loss, rtol=0, atol=0)
    half = discriminator_loss(D, real.bfloat16(), fake.bfloat16())
    assert half.loss.dtype == torch.float32
    assert generator_loss(D, real.bfloat16(), fake.bfloat16()).dtype == torch.float32


@pytest.mark.cuda
def test_cuda_agrees_with_cpu():
    D = roughen(small().double())
    real, fake = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    expected = discriminator_loss(D, real, fake)
    got = discriminator_loss(copy.deepcopy(D).cuda(), real.cuda(), fake.cuda())
    for field, value in expected._asdict().items():
        assert_close(getattr(got, field).cpu(), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deepcopy_and_state_dict(dtype):
    D = roughen(small().to(dtype))
    x = torch.randn(3, 1, 8, 8, dtype=dtype)
    other = copy.deepcopy(D)
    fresh = small().to(dtype)
    fresh.load_state_dict(D.state_dict())
    assert D(x).dtype == dtype and torch.equal(fresh(x), D(x))
    with torch.no_grad():
        other.stem.weight.zero_()
    assert not torch.equal(other(x), D(x))


def test_a_new_network_is_linear_and_its_scale_does_not_grow_with_depth():
    torch.manual_seed(0)
    a, b = torch.randn(2, 8, 3, 32, 32)
    for blocks in (1, 4):
        D = Discriminator.for_images(3, 32, blocks=blocks)
        assert_close(D(a + b), D(a) + D(b), rtol=1e-4, atol=1e-4)
        assert 0.01 < D(a).std() < 3
    block = D.stages[0][0]
    assert block.grouped.weight.std().item() == pytest.approx(
        (2 / 1.04) ** 0.5 * 16**-0.25 / (16 * 9) ** 0.5, rel=0.1
    )


def test_labels():
    D = roughen(small(condition_dim=5, embedding_dim=6).double())
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    rows = torch.eye(5)[labels]
    assert_close(D(x, labels), D(x, rows))
    assert not torch.allclose(D(x, labels), D(x))
    with torch.no_grad():
        D.embedding.weight.fill_(1.0)
    assert_close(D(x, labels), D(x))
    d = discriminator_loss(D, x, x.flip(0), condition=labels)
    d.loss.mean().backward()
    assert D.embedding.weight.grad.abs().sum() > 0
    assert generator_loss(D, x, x.flip(0), condition=labels).shape == (4,)


@pytest.mark.parametrize(
    "condition, message",
    [
        (torch.tensor([0, 1, 5, 2]), "labels must lie in 0..4, got 0..5"),
        (torch.tensor([0, 1, -1, 2]), "got -1..2"),
        (torch.tensor([0, 1]), "integer labels of shape (4,) or rows of shape (4, 5)"),
        (torch.zeros(4), "got torch.float32 of shape (4,)"),
        (torch.zeros(4, 6), "of shape (4, 6)"),
    ],
)
def test_wrong_labels(condition, message):
    D = small(condition_dim=5, embedding_dim=6)
    with pytest.raises(ValueError) as error:
        D(torch.zeros(4, 1, 8, 8), condition)
    assert message in str(error.value)


def test_labels_for_an_unconditional_network():
    with pytest.raises(ValueError, match="no condition_dim"):
        small()(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(channels=0), "channels and expansion must hold positive integers"),
        (dict(expansion=0), "channels and expansion"),
        (dict(channels=1.5), "channels and expansion"),
        (dict(widths=[]), "widths must hold positive integers"),
        (dict(widths=[8, -8]), "widths"),
        (dict(widths=8), "widths must be a sequence"),
        (dict(blocks=[1, True]), "blocks"),
        (dict(blocks=[1, 0]), "blocks"),
        (dict(widths=[8, 8, 8]), "got 3, 2 and 2"),
        (
            dict(cardinalities=[2, 5]),
            "stage 1: width * expansion = 8 * 2 = 16 is not divisible by cardinality 5",
        ),
        (dict(condition_dim=10), "condition_dim and embedding_dim"),
        (dict(embedding_dim=10), "needs a condition_dim"),
    ],
)
def test_wrong_architecture(settings, message):
    with pytest.raises(ValueError) as error:
        Discriminator(
            **{**dict(channels=1, widths=[8, 8], cardinalities=[2, 2], blocks=[1, 1]), **settings}
        )
    assert message in str(error.value)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16), (2, 1, 8, 4), (1, 8, 8)])
def test_wrong_images(shape):
    with pytest.raises(ValueError) as error:
        small()(torch.zeros(shape))
    assert str(error.value).endswith(f"shape (B, 1, 8, 8), got {shape}")


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        small()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="floating-point"):
        discriminator_loss(
            small(), torch.zeros(2, 1, 8, 8, dtype=torch.long), torch.zeros(2, 1, 8, 8)
        )


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), float("inf")])
def test_wrong_gamma(gamma):
    with pytest.raises(ValueError, match="gamma must be a finite number >= 0"):
        discriminator_loss(small(), torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), gamma=gamma)


@pytest.mark.parametrize("loss", [discriminator_loss, generator_loss])
@pytest.mark.parametrize("real, fake", [((2, 1, 8, 8), (3, 1, 8, 8)), ((0, 1, 8, 8), (0, 1, 8, 8))])
def test_unpaired_batches(loss, real, fake):
    with pytest.raises(ValueError, match="compared in pairs"):
        loss(small(), torch.zeros(real), torch.zeros(fake))


@pytest.mark.parametrize("channels, size", [(1, 4), (1, 8), (1, 32), (3, 64), (4, 32), (16, 32)])
def test_for_images(channels, size):
    D = Discriminator.for_images(channels, size)
    assert (D.channels, D.size) == (channels, size)
    assert D(torch.randn(2, channels, size, size)).shape == (2,)


@pytest.mark.parametrize(
    "size, nearest", [(28, 32), (20, 16), (12, 16), (2, 4), (1, 4), (100, 128)]
)
def test_for_images_names_the_nearest_size(size, nearest):
    with pytest.raises(
        ValueError,
        match=rf"size must be 4 \* 2\*\*n, got {size}; .* nearest valid size, {nearest}$",
    ):
        Discriminator.for_images(1, size)


def test_for_images_passes_labels_on():
    D = Discriminator.for_images(1, 8, base_width=10, condition_dim=3, embedding_dim=4)
    assert D(torch.randn(2, 1, 8, 8), torch.tensor([0, 2])).shape == (2,)
    with pytest.raises(ValueError, match="size, base_width"):
        Discriminator.for_images(1, 8, base_width=0)


def test_discriminator_learns_to_separate_and_generator_to_fool():
    torch.manual_seed(0)
    D = Discriminator.for_images(1, 8, base_width=8)
    real = torch.randn(32, 1, 8, 8) * 0.3 + torch.linspace(-1, 1, 8)
    fake = (torch.randn(32, 1, 8, 8) * 0.3).requires_grad_()
    optimiser = torch.optim.Adam(D.parameters(), lr=5e-3, betas=(0.0, 0.99))
    history = []
    for _ in range(40):
        loss = discriminator_loss(D, real, fake).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < history[0]
    assert (D(real) > D(fake)).float().mean() > 0.9
    before = generator_loss(D, real, fake)
    (gradient,) = torch.autograd.grad(before.sum(), fake)
    after = generator_loss(D, real, fake - 0.1 * gradient)
    assert after.mean() < before.mean()


# --- any shape

SHAPES = [
    (),
    (2,),
    (7,),
    (64,),
    (1, 5),
    (3, 100),
    (1, 28, 28),
    (3, 24, 40),
    (1, 3, 3),
    (8, 256, 16),
    (4, 8, 200),
    (4, 5, 16, 16),
    (2, 2, 3, 9, 8),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sample_of_any_shape_is_judged_and_none_of_its_numbers_is_lost(shape):
    D = Discriminator.for_shape(shape, base_width=8).double()
    real, fake = torch.randn(2, 3, *shape, dtype=torch.float64)
    page = D.arrange(real)
    assert page.shape[-1] == page.shape[-2] == D.size and page.shape[1] == D.channels
    assert sorted(page[page != 0].tolist()) == sorted(real.flatten().tolist())
    d = discriminator_loss(D, real, fake)
    assert d.loss.shape == (3,) and d.loss.isfinite().all()
    fake.requires_grad_()
    (gradient,) = torch.autograd.grad(generator_loss(D, real, fake).sum(), fake)
    assert gradient.shape == fake.shape and (gradient != 0).all()


def test_the_square_is_not_much_larger_than_the_sample():
    for shape in SHAPES:
        D = Discriminator.for_shape(shape, base_width=8)
        assert D.channels * D.size**2 <= max(16 * D.channels, 6 * torch.Size(shape).numel()), shape


@pytest.mark.parametrize("size", [4, 8, 32])
def test_a_square_of_a_valid_size_gets_the_same_network_as_ever(size):
    nets = []
    for make in (
        lambda: Discriminator.for_images(3, size),
        lambda: Discriminator.for_shape((3, size, size)),
    ):
        torch.manual_seed(0)
        nets.append(make())
    assert type(nets[1]) is Discriminator and all(
        torch.equal(a, b) for a, b in zip(*(n.state_dict().values() for n in nets))
    )


@pytest.mark.parametrize("shape", [(0,), (1, 0, 8), (3, -1), (2.0, 8), (True, 8, 8)])
def test_an_empty_shape_is_refused_in_words(shape):
    with pytest.raises(ValueError, match="every axis"):
        Discriminator.for_shape(shape)
