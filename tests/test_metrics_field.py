"""What tables of images and films print: SSIM, films by frame, scores of prompts, and costs."""

import gas_nb.runtime.device  # noqa: F401  (before transformers and diffusers)

import importlib
import sys
import types
from dataclasses import replace
from functools import partial

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from tiny import TINY, build

from gas_nb.app.tabs.tradeoff import _choices
from gas_nb.classic import ddim
from gas_nb.data import Pairs, make_pairs
from gas_nb.evaluation import (
    LPIPS_WEIGHTS,
    Judge,
    Metric,
    by_frame,
    clip_score,
    evaluate,
    find_metric,
    forget_metric,
    hpsv2,
    image_reward,
    l1,
    lpips_distance,
    measure,
    pick_score,
    psnr,
    register_metric,
    structural_similarity,
)
from gas_nb.metrics import texts
from gas_nb.runtime.device import import_torchvision
from gas_nb.schedule import spacing
from gas_nb.teacher import load_teacher
from gas_nb.teachers.decoding import frames, pictures
from gas_nb.teachers.diffusers import PipelineTeacher

PROMPTS = ["a red shoe", "a bag", "two cats"]
SMALL = dict(guidance_scale=2.0, size=16)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def steps_of(teacher, nfe=2):
    return ddim(teacher.schedule, spacing(teacher.schedule, nfe, "time_uniform"))


# --- SSIM, and films frame by frame


def similarity_by_the_formula(x, y):
    """Wang et al. 2004 with a Gaussian window of 11 pixels and borders reflected, one channel."""
    place = torch.arange(-5.0, 6.0, dtype=torch.float64)
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def means(v):
        padded = torch.nn.functional.pad(v[None, None], (5, 5, 5, 5), mode="reflect")
        return (padded.unfold(2, 11, 1).unfold(3, 11, 1) * window).sum((-1, -2))

    x, y = x.double(), y.double()
    mx, my = means(x), means(y)
    vx, vy, cov = means(x * x) - mx**2, means(y * y) - my**2, means(x * y) - mx * my
    c1, c2 = 0.02**2, 0.06**2
    top = (2 * mx * my + c1) * (2 * cov + c2)
    return (top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_is_the_papers_formula_and_that_of_torchmetrics():
    x = uniform(3, 3, 20, 16)
    y = (x + 0.3 * uniform(3, 3, 20, 16, seed=1)).clamp(-1, 1)
    ours = structural_similarity()(x, y)
    each = [[similarity_by_the_formula(a, b) for a, b in zip(*pair)] for pair in zip(x, y)]
    torch.testing.assert_close(ours.double(), torch.tensor(each).mean(1), rtol=0, atol=2e-5)
    import_torchvision()
    kit = importlib.import_module("torchmetrics.image")
    peer = kit.StructuralSimilarityIndexMeasure(data_range=2.0)
    assert ours.mean().item() == pytest.approx(peer(x, y).item(), abs=1e-6)
    assert torch.allclose(structural_similarity()(x, x), torch.ones(3))
    with pytest.raises(ValueError, match="11 x 11"):
        structural_similarity()(x[..., :8], y[..., :8])
    with pytest.raises(ValueError, match="differ"):
        structural_similarity()(x, y[:1])


@pytest.mark.parametrize("metric", [psnr, structural_similarity()], ids=["psnr", "ssim"])
def test_a_film_is_the_mean_of_its_frames(metric):
    x = uniform(2, 4, 3, 16, 12)
    y = (x + 0.2 * uniform(2, 4, 3, 16, 12, seed=1)).clamp(-1, 1)
    each = torch.stack([metric(x[:, k], y[:, k]) for k in range(4)], 1)
    torch.testing.assert_close(metric(x, y), each.mean(1))
    assert metric(x, y).shape == (2,)
    with pytest.raises(ValueError, match="differ"):
        metric(x, y[:, :3])


def test_a_frame_that_was_given_does_not_make_a_films_psnr_infinite():
    x = uniform(2, 4, 3, 8, 8)
    y = x + 0.1
    y[0, 0] = x[0, 0]
    y[1] = x[1]
    assert psnr(x, y)[0].item() == pytest.approx(26.0206, abs=1e-3)
    assert psnr(x, y)[1].isinf()
    y[0, 2] = torch.nan
    assert psnr(x, y)[0].isnan()  # what went wrong is not left out


def test_films_of_lpips(monkeypatch, tmp_path):
    lpips = pytest.importorskip("lpips")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LPIPS_WEIGHTS).touch()
    net = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False).eval()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: net)
    x, y = uniform(2, 3, 3, 32, 32), uniform(2, 3, 3, 32, 32, seed=1)
    each = torch.stack([net(x[:, k], y[:, k]).flatten() for k in range(3)], 1)
    torch.testing.assert_close(lpips_distance()(x, y), each.mean(1))
    see_through = torch.cat([x[:, 0], uniform(2, 1, 32, 32)], 1)
    assert (lpips_distance()(see_through, x[:, 0]) == 0).all()
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        lpips_distance()(x[:, 0, :2], y[:, 0, :2])


def test_frames_come_in_every_order_that_pipelines_have():
    film = torch.rand(2, 5, 3, 8, 6)
    for held in (film, film.movedim(2, 4).numpy(), film.movedim(2, 1), list(film)):
        torch.testing.assert_close(frames(held), film * 2 - 1)
    bytes_ = [[Image.new("RGB", (6, 8), (255, 0, 0))] * 5] * 2
    assert frames(bytes_).shape == (2, 5, 3, 8, 6) and frames(bytes_)[0, 0, 0].eq(1).all()
    assert pictures(film).shape == (2, 3, 8, 24)


@pytest.fixture
def pairs_at_a_time(monkeypatch):
    """Blocks of two: a tiny pipeline is asked sample by sample."""
    monkeypatch.setattr("gas_nb.metrics.judge.block_size", lambda teacher: 2)


def tiny_teacher(name):
    call = {k: v for k, v in TINY[name].call().items() if k != "num_inference_steps"}
    return PipelineTeacher(build(name), calls=[call])


def some_pairs(teacher, n=2):
    """Pairs as if the teacher had made them: its noise, and what three steps make of it."""
    x_T = teacher.noise(range(n))
    return Pairs(torch.arange(n), x_T, teacher.sample(x_T, None, steps_of(teacher, 3)))


def test_a_judge_looks_at_every_frame_of_a_film(pairs_at_a_time):
    few = replace(tiny_teacher("WanPipeline"), features=lambda x: x.flatten(1)[:, :4])
    teacher = replace(few, name="a film")  # decodes by the method of the first one
    pairs, table = some_pairs(teacher), steps_of(teacher)
    row = Judge(teacher, "l1 psnr ssim frechet", reference=moments(teacher))(table, pairs)[0]
    x = teacher.sample(pairs.x_T, None, table)
    ours, theirs = teacher.frames(x), teacher.frames(pairs.x_0)
    assert ours.shape == (2, 5, 3, 16, 16)
    each = [psnr(ours[:, k], theirs[:, k]) for k in range(5)]
    assert row["psnr"] == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    similar = structural_similarity()(ours, theirs).double().mean().item()
    assert row["ssim"] == pytest.approx(similar, rel=1e-5)
    strips = torch.cat([ours[:, k] for k in (0, 1, 3, 4)], -1)
    assert torch.equal(teacher.pictures(x), strips) and row["frechet"] >= 0


def test_a_film_that_is_handed_out_without_an_axis_of_its_own_is_one_sample(monkeypatch):
    teacher = PipelineTeacher(pipelines.ddpm())
    film = torch.rand(9, 3, 8, 8)
    monkeypatch.setattr(PipelineTeacher, "outputs", lambda self, x_0: [film])
    state = torch.zeros(1, *teacher.shape)
    assert torch.equal(teacher.frames(state), film[None] * 2 - 1)
    assert teacher.pictures(state).shape == (1, 3, 8, 32)
    own = replace(teacher, decode=lambda x: x + 1)
    assert torch.equal(own.frames(state), state + 1)


def moments(teacher):
    blank = teacher.features(teacher.decode(torch.zeros(1, *teacher.shape)))
    return torch.zeros(blank.shape[1]), torch.eye(blank.shape[1])


def test_a_metric_of_ones_own_sees_frames_as_images():
    seen = []

    def shape_of(x, y):
        seen.append((tuple(x.shape), tuple(y.shape)))
        return l1(x, y)

    film = uniform(2, 3, 1, 4, 4)
    by_frame(shape_of)(film, film)
    by_frame(by_frame(shape_of))(film[:, 0], film[:, 0])
    assert seen == [((2, 1, 4, 4),) * 2] * 4


# --- prompts


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of random numbers in the format that transformers saves."""
    kit = pytest.importorskip("transformers")
    size = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    ends = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    config = kit.CLIPConfig(
        text_config=dict(size, vocab_size=300, max_position_embeddings=16, **ends),
        vision_config=dict(size, image_size=32, patch_size=8),
        projection_dim=8,
    )
    torch.manual_seed(3)
    crop = dict(height=32, width=32)
    images = kit.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=crop)
    folder = tmp_path_factory.mktemp("clip")
    kit.CLIPModel(config).save_pretrained(folder)
    kit.CLIPProcessor(images, pipelines.tiny_tokenizer()).save_pretrained(folder)
    return folder


def cosines_by_hand(folder, x, prompts):
    """From PNG-like bytes and the model's own forward pass, a sample at a time."""
    kit = pytest.importorskip("transformers")
    model = kit.CLIPModel.from_pretrained(folder).eval()
    processor = kit.CLIPProcessor.from_pretrained(folder)
    found = []
    for image, prompt in zip(x, prompts):
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1)
        picture = Image.fromarray(pixels.numpy())
        given = processor(text=[prompt], images=picture, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**given).logits_per_image[0, 0] / model.logit_scale.exp())
    return torch.stack(found), model.logit_scale.exp().item()


class Tensors:
    """A CLIP whose features are tensors, as they were before transformers 5."""

    def __init__(self, folder):
        self.net = importlib.import_module("transformers").CLIPModel.from_pretrained(folder)
        self.config = self.net.config

    def to(self, device):
        return self

    def get_image_features(self, pixels):
        return texts._unit(self.net.get_image_features(pixels))

    def get_text_features(self, words, mask):
        return texts._unit(self.net.get_text_features(words, mask))


def test_clip_scores_follow_the_formula_and_torchmetrics(clip_folder):
    x = uniform(3, 3, 40, 32)
    cosines, scale = cosines_by_hand(clip_folder, x, PROMPTS)
    score = clip_score(model=clip_folder)
    torch.testing.assert_close(score(x, PROMPTS), 100 * cosines.clamp(min=0), rtol=0, atol=1e-3)
    picked = pick_score(model=clip_folder, processor=clip_folder)
    torch.testing.assert_close(picked(x, PROMPTS), scale * cosines, rtol=0, atol=1e-3)
    assert picked(x, PROMPTS).std() > 1e-3

    kit = importlib.import_module("transformers")
    multimodal = importlib.import_module("torchmetrics.functional.multimodal")
    processor = kit.CLIPProcessor.from_pretrained(clip_folder)
    images = ((x + 1) * 127.5).round().byte()
    for image, prompt, ours in zip(images, PROMPTS, score(x, PROMPTS)):

        def model():
            return Tensors(clip_folder), processor

        peer = multimodal.clip_score(image, prompt, model)
        assert peer.item() == pytest.approx(ours.item(), abs=1e-3)


def test_long_prompts_are_cut_and_every_prompt_is_read_once(clip_folder, monkeypatch):
    clip = texts.load_clip("a score", clip_folder, clip_folder, "cpu")
    asked = []
    encoded = texts.Clip._encoded
    monkeypatch.setattr(texts.Clip, "_encoded", lambda self, p: asked.append(p) or encoded(self, p))
    both = ["a", "b" * 500, "a"]
    rows = clip.texts(both)
    assert torch.equal(rows[0], rows[2]) and torch.equal(rows, clip.texts(both))
    assert asked == both[:2] and not torch.allclose(rows[0], rows[1])
    with pytest.raises(ValueError, match="1 images and 3 prompts"):
        clip.cosines(uniform(1, 1, 32, 32), both)


def text_teacher(prompts=PROMPTS):
    return PipelineTeacher(pipelines.stable_diffusion(), prompts=prompts, **SMALL)


def test_every_sample_is_judged_by_its_own_prompt(clip_folder, monkeypatch):
    teacher = text_teacher()
    labels = torch.tensor([2, 0, 0, 1, 2, 1, 0])
    noise = teacher.noise(range(7), labels)
    pairs = Pairs(
        torch.arange(7), noise, teacher.sample(noise, labels, steps_of(teacher, 3)), labels
    )
    table = steps_of(teacher)
    load = partial(clip_score, model=clip_folder)
    usual = find_metric("clip_score")
    monkeypatch.setattr("gas_nb.metrics.judge.block_size", lambda teacher: 3)
    register_metric(replace(usual, load=load))
    try:
        judge = Judge(teacher, "clip_score")
        row = judge(table, pairs)[0]
        x = teacher.sample(pairs.x_T, pairs.condition, table)
        assert judge.compare(x, pairs.x_0, pairs.condition)["clip_score"] == row["clip_score"]
    finally:
        register_metric(usual)
    chosen = [PROMPTS[k] for k in pairs.condition.tolist()]
    assert len(set(chosen)) > 1
    expected = load()(teacher.decode(x), chosen).double()
    assert row["clip_score"] == pytest.approx(expected.mean().item(), rel=1e-4)
    wrong = load()(teacher.decode(x), chosen[::-1]).double()
    assert abs(wrong.mean() - expected.mean()) > 1e-3


def test_one_prompt_needs_no_condition_and_a_call_without_words_no_metric(digits, pairs_at_a_time):
    seen = []

    def length(x, prompts):
        seen.extend(prompts)
        return torch.tensor([float(len(p)) for p in prompts])

    register_metric(Metric("length", "Length", "prompts", length, auto=False))
    try:
        teacher = text_teacher(["a dog"])
        row = evaluate(teacher, steps_of(teacher), some_pairs(teacher), metrics="length")[0]
        assert row["length"] == 5 and set(seen) == {"a dog"}
        assert "length" not in Judge(digits).metrics
        calls = [dict(prompt="a dog"), dict(prompt="")]
        silent = PipelineTeacher(pipelines.stable_diffusion(), calls=calls, **SMALL)
        listed = PipelineTeacher(
            pipelines.stable_diffusion(), calls=[dict(prompt=["a dog"])], **SMALL
        )
        assert silent.prompts == [] and listed.prompts == ["a dog"] and digits.prompts == []
        for other in (digits, silent):
            with pytest.raises(ValueError, match="length needs prompts, and .* has none"):
                Judge(other, "l1 length")
    finally:
        forget_metric("length")


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.mark.parametrize(
    "name, command",
    [
        ("clip_score", "hf download openai/clip-vit-base-patch16"),
        ("pick_score", "hf download yuvalkirstain/PickScore_v1"),
        ("hpsv2", "hf download xswu/HPSv2 HPS_v2.1_compressed.pt"),
        ("image_reward", "hf download THUDM/ImageReward ImageReward.pt med_config.json"),
    ],
)
def test_missing_weights_are_refused_with_the_command_that_gets_them(name, command, monkeypatch):
    teacher = text_teacher()
    monkeypatch.setattr(texts, "_in_cache", lambda hub_id: None)
    monkeypatch.setattr(type(teacher), "sample", None)  # nothing is sampled
    with pytest.raises(FileNotFoundError, match=command):
        Judge(teacher, f"l1 {name}")
    assert name not in Judge(teacher).metrics


def test_a_package_that_is_missing_or_broken_is_named(clip_folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="CLIP score needs the package transformers"):
        clip_score(model=clip_folder)
    (tmp_path / texts.HPS_WEIGHTS).touch()
    with pytest.raises(ImportError, match="HPSv2 needs the package hpsv2: pip install hpsv2"):
        hpsv2(folder=tmp_path)
    broken = tmp_path / "ImageReward.py"
    broken.write_text("raise FileNotFoundError('no such file: bpe.txt.gz')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in texts.REWARD_FILES:
        (tmp_path / name).touch()
    monkeypatch.setattr(texts, "_in_cache", lambda hub_id: tmp_path)
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(ImportError, match="cannot be imported .no such file: bpe"):
        image_reward(folder=tmp_path)


class TwoTowers(torch.nn.Module):
    """A stand-in for the ViT-H/14 of hpsv2: mean colours, and letters counted."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Linear(3, 3)

    def forward(self, image, text):
        features = dict(image_features=image.mean((2, 3)), text_features=self.words(text))
        return {k: v / v.norm(dim=-1, keepdim=True) for k, v in features.items()}


def test_hpsv2_is_put_together_as_its_package_does(monkeypatch, tmp_path):
    asked = {}

    def create_model_and_transforms(name, **options):
        asked.update(options, name=name)
        return TwoTowers(), None, to_pixels

    def to_pixels(image):
        return torch.from_numpy(np.array(image)).float().movedim(-1, 0)

    def tokenize(prompts):
        return torch.tensor([[float(p.count(c)) for c in "abc"] for p in prompts])

    kit = types.ModuleType("hpsv2.src.open_clip")
    kit.create_model_and_transforms = create_model_and_transforms
    kit.get_tokenizer = lambda name: tokenize
    for name in ("hpsv2", "hpsv2.src"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "hpsv2.src.open_clip", kit)
    trained = TwoTowers()
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / texts.HPS_WEIGHTS)
    x, prompts = uniform(2, 3, 4, 6), ["abba", "cab"]
    ours = hpsv2(folder=tmp_path)(x, prompts)
    pixels = ((x + 1) * 127.5).round()
    said = trained(pixels, tokenize(prompts))
    expected = (said["image_features"] * said["text_features"]).sum(-1)
    torch.testing.assert_close(ours, expected.detach())
    wanted = dict(name="ViT-H-14", light_augmentation=True, output_dict=True, device="cpu")
    assert asked == wanted  # no weights but those of HPS
    torch.save(dict(state_dict=Evil()), tmp_path / texts.HPS_WEIGHTS)
    with pytest.raises(Exception, match="[Ww]eights_only|Unsupported"):
        hpsv2(folder=tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_image_reward_asks_its_package_for_every_sample(monkeypatch, tmp_path):
    kit, asked = types.ModuleType("ImageReward"), []

    class Model:
        def score(self, prompt, image):
            asked.append((prompt, image.size, image.mode))
            return len(prompt) + image.getpixel((0, 0))[0] / 255

    def load(path, device, med_config):
        asked.append((path, device, med_config))
        return Model()

    kit.load = load
    monkeypatch.setitem(sys.modules, "ImageReward", kit)
    monkeypatch.setattr(texts, "_in_cache", lambda hub_id: tmp_path)
    for name in (*texts.REWARD_FILES, "vocab.txt"):
        (tmp_path / name).touch()
    film = torch.stack([torch.ones(2, 1, 5, 7), -torch.ones(2, 1, 5, 7)], 1)
    ours = image_reward(folder=tmp_path)(film, ["ab", "abc"])
    assert ours.tolist() == [2.5, 3.5]
    assert asked[0] == tuple(map(str, [tmp_path / "ImageReward.pt"])) + ("cpu",) + (
        str(tmp_path / "med_config.json"),
    )
    assert asked[1:] == [(p, (7, 5), "RGB") for p in ("ab", "abc")] * 2


# --- what it costs


@pytest.mark.parametrize(
    "name, passes",
    [
        ("StableDiffusionPipeline", 2),  # both in one batch
        ("WanPipeline", 2),  # one after the other
        ("StableDiffusionPAGPipeline", 3),
        ("FluxPipeline", 1),  # guidance is an input of its network
        ("ZImagePipeline", 2),  # states in a list
        ("TextToVideoSDPipeline", 2),  # frames folded into the batch behind the network
        ("StableDiffusionControlNetPipeline", 2),
    ],
)
def test_network_calls_are_counted_where_a_pipeline_calls_its_network(
    name, passes, pairs_at_a_time
):
    teacher = tiny_teacher(name)
    pipe = teacher.pipeline
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    pairs = some_pairs(teacher)
    judge = Judge(teacher, "l1")
    judge(steps_of(teacher), pairs)  # enters the pipeline
    rows = []

    def watch(module, args, given):
        first = [v for v in (*args, *given.values()) if isinstance(v, (list, torch.Tensor))]
        rows.append(len(first[0]))

    hook = network.register_forward_pre_hook(watch, with_kwargs=True)
    row = judge(steps_of(teacher, 3), pairs)[0]
    hook.remove()
    assert row["network_calls"] == 3 * passes and row["guidance_passes"] == 3 * (passes - 1)
    assert sum(rows) == judge.size * row["network_calls"]
    assert row["seconds_per_image"] > 0 and not network._forward_pre_hooks


def test_a_guided_denoiser_calls_its_network_twice():
    teacher = load_teacher("fmnist", "cpu")
    noise, label = teacher.noise([0]), torch.tensor([3])
    for given, condition, calls in (
        (teacher, label, 1),
        (teacher.with_guidance(2.0), label, 2),
        (teacher.with_guidance(2.0), None, 1),
    ):
        given.denoiser(noise, 0.5, 0.0, condition)
        assert (given.denoiser.evaluations, given.denoiser.network_calls) == (1, calls)


def test_a_runs_row_has_the_costs_of_a_sample(digits):
    pairs = make_pairs(digits, range(7))
    row, _ = measure(digits, steps_of(digits, 4), pairs)
    assert (row["network_calls"], row["guidance_passes"]) == (4, 0)
    known, _ = measure(digits, steps_of(digits, 4), pairs, known=pairs.x_0)
    assert (known["network_calls"], known["l1"]) == (4, 0)
    remembering = digits.remembering()
    again = Judge(remembering, "l1")
    both = Pairs(pairs.seeds, pairs.x_T, pairs.x_0)
    first, second = (again(steps_of(digits, 4), both)[0]["network_calls"] for _ in range(2))
    assert (first, second) == (4, 0)  # what is remembered is not asked again


def test_the_menu_of_measures_is_read_from_the_specs():
    choices = dict(reversed(pair) for pair in _choices([dict(solver="gs", nfe=4, l1=0.1, ssim=1)]))
    assert list(choices) == ["l1", "l2", "ssim", "frechet"]
    assert choices["ssim"] == "SSIM, higher is better"
    assert choices["l1"] == "L1 to the teacher, lower is better"
