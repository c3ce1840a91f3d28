"""Training of the Fashion-MNIST teacher: plan, loss, exact resume after a kill, export."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gas_nb.teachers import fmnist
from gas_nb.teachers.fmnist import (
    CHECKPOINT,
    NO_LABEL,
    TeacherConfig,
    UNet2DModel,
    draw_step,
    ema_decay,
    export_weights,
    finish_plan,
    loss_weights,
    make_network,
    noise_errors,
    rate_factor,
    read_checkpoint_header,
    run_training,
    starting_weights,
    train_teacher,
    training_stages,
)

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = TeacherConfig(
    widths=(8, 16),
    attention_size=16,
    head_dim=8,
    batch_size=4,
    steps=5,
    decay_steps=2,
    warmup_steps=2,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy_data(n=24):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 1, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % 10


def train(config, folder, **options):
    return train_teacher(
        config, *toy_data(), folder, **{"device": "cpu", "log_every": 1, **options}
    )


def equal_checkpoints(a, b):
    first, second = load_file(Path(a) / CHECKPOINT), load_file(Path(b) / CHECKPOINT)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_network_is_decided_by_the_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (
        make_network(TINY),
        make_network(TINY),
        make_network(replace(TINY, seed=1)),
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)


def test_draws_depend_on_seed_and_step_alone_and_cover_the_timesteps():
    config = TeacherConfig(batch_size=100, label_dropout=0.3)
    draws = [draw_step(config, step, 50) for step in range(40)]
    assert torch.equal(draws[7].noise, draw_step(config, 7, 50).noise)
    assert not torch.equal(draws[7].noise, draw_step(replace(config, seed=1), 7, 50).noise)
    for d in draws:
        counts = torch.bincount(d.timesteps // 10, minlength=100)
        assert d.timesteps.min() >= 0 and d.timesteps.max() <= 999 and (counts - 1).abs().sum() <= 2
        assert d.indices.min() >= 0 and d.indices.max() < 50
    assert torch.stack([d.hidden for d in draws]).float().mean().item() == pytest.approx(
        0.3, abs=0.03
    )


def test_noising_and_label_dropout_reach_the_network_as_written():
    seen = {}

    class Oracle(torch.nn.Module):
        def forward(self, x, t, class_labels, return_dict):
            seen.update(x=x, labels=class_labels)
            return (torch.zeros_like(x),)

    images, labels = toy_data()
    draws = draw_step(replace(TINY, label_dropout=0.5, batch_size=16), 3, len(images))
    errors = noise_errors(Oracle(), images, labels, draws)
    torch.testing.assert_close(errors, draws.noise.square().mean((1, 2, 3)))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    a = (
        torch.stack([(1 - betas[: t + 1]).prod() for t in draws.timesteps])
        .float()
        .view(-1, 1, 1, 1)
    )
    clean = images[draws.indices].float() / 127.5 - 1
    torch.testing.assert_close(
        seen["x"], a.sqrt() * clean + (1 - a).sqrt() * draws.noise, rtol=1e-5, atol=1e-5
    )
    assert draws.hidden.any() and (seen["labels"] == NO_LABEL).eq(draws.hidden).all()
    assert torch.equal(seen["labels"][~draws.hidden], labels[draws.indices][~draws.hidden])


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
def test_built_in_guidance_asks_for_the_guided_prediction(scale):
    images, labels = toy_data()
    draws = draw_step(replace(TINY, label_dropout=0.5, batch_size=16), 3, len(images))

    class Guided(torch.nn.Module):
        """Knows the noise with a label, nothing without
        one, and states both as the guidance formula has it."""

        def forward(self, x, t, class_labels, return_dict):
            null = torch.full_like(x, 0.25)
            guided = null + scale * (draws.noise - null)
            return (torch.where((class_labels == NO_LABEL).view(-1, 1, 1, 1), null, guided),)

    errors = noise_errors(Guided(), images, labels, draws, scale)
    assert draws.hidden.any() and errors[~draws.hidden].max() < 1e-10
    torch.testing.assert_close(
        errors[draws.hidden], (0.25 - draws.noise).square().mean((1, 2, 3))[draws.hidden]
    )


def test_training_with_built_in_guidance_ends_in_the_guided_predictions_of_training_without():
    class Affine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = (torch.nn.Parameter(torch.zeros(NO_LABEL + 1)) for _ in range(2))

        def forward(self, x, t, class_labels, return_dict):
            w, b = (v[class_labels].view(-1, 1, 1, 1) for v in (self.w, self.b))
            return (w * x + b,)

    config = replace(TINY, batch_size=64, label_dropout=0.3)
    images = (
        torch.tensor([0, 255], dtype=torch.uint8)
        .repeat_interleave(16)
        .view(-1, 1, 1, 1)
        .expand(-1, 1, 32, 32)
    )
    labels, learnt = torch.arange(2).repeat_interleave(16), {}
    for scale in (1.0, 2.0):
        network = Affine()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for step in range(400):
            optimizer.zero_grad()
            noise_errors(
                network, images, labels, draw_step(config, step % 8, len(images)), scale
            ).mean().backward()
            optimizer.step()
        learnt[scale] = torch.stack([network.w, network.b]).detach()[:, [0, 1, NO_LABEL]]
    plain, null = learnt[1.0][:, :2], learnt[1.0][:, 2:]
    assert (plain[1, 0] - plain[1, 1]).abs() > 0.1
    torch.testing.assert_close(
        learnt[2.0], torch.cat([null + 2.0 * (plain - null), null], 1), rtol=0, atol=0.02
    )


def test_min_snr_weights():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    a = torch.cumprod(1 - betas, 0)
    snr = a / (1 - a)
    torch.testing.assert_close(loss_weights(5.0), torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert (loss_weights(0) == 1).all()


def test_learning_rate_and_average_plans():
    config = TeacherConfig(steps=1000, warmup_steps=100, decay_steps=200)
    rates = [rate_factor(config, s) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == rates[500] == rates[799] == 1
    assert rates[900] == pytest.approx(0.5) and rates[999] == pytest.approx(0.005)
    assert ema_decay(config, 0) == 0.1 and ema_decay(config, 10**6) == config.ema_decay
    assert rate_factor(replace(config, warmup_steps=0, decay_steps=0), 999) == 1


def test_training_lowers_the_loss_on_one_image(tmp_path):
    config = replace(TINY, steps=60, decay_steps=10, batch_size=8, lr=5e-3)
    images, labels = toy_data(1)
    records = list(train_teacher(config, images, labels, tmp_path, device="cpu", log_every=10))
    assert [r["step"] for r in records] == list(range(10, 61, 10))
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resume_is_bit_identical_wherever_it_was_abandoned(tmp_path, precision):
    config = replace(TINY, precision=precision)
    list(train(config, tmp_path / "whole"))
    for abandoned_at in (1, 3):
        folder = tmp_path / str(abandoned_at)
        session = train(config, folder, checkpoint_every=0)
        for _ in range(abandoned_at):
            next(session)
        session.close()
        assert read_checkpoint_header(folder)[0] == abandoned_at
        assert [r["step"] for r in train(config, folder, log_every=1)][0] == abandoned_at + 1
        assert equal_checkpoints(tmp_path / "whole", folder)


KILLED = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, "tests")
from test_fmnist_training import TINY, toy_data, replace, run_training
options = dict(device="cpu", log_every=1, checkpoint_every=0)
for r in run_training(replace(TINY, steps=400), *toy_data(), sys.argv[1], **options):
    print(r["step"], flush=True)
"""


def test_a_killed_process_resumes_to_the_same_weights(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if int(line) >= 4:
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done, _ = read_checkpoint_header(tmp_path / "killed")
    assert 4 <= done < 400
    config = replace(TINY, steps=done + 3)
    resumed = list(
        run_training(config, *toy_data(), tmp_path / "killed", device="cpu", log_every=1)
    )
    assert [r["step"] for r in resumed] == [done + 1, done + 2, done + 3]
    # the whole run in one session, with the plan that the first session had until the kill
    whole = tmp_path / "whole"
    session = train(replace(TINY, steps=400), whole, checkpoint_every=0)
    for _ in range(done):
        next(session)
    session.close()
    list(train(config, whole))
    assert equal_checkpoints(whole, tmp_path / "killed")
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, done + 4))


def test_stop_after_minutes_leaves_a_checkpoint_to_resume(tmp_path):
    records = list(train(TINY, tmp_path, stop_after_minutes=1e-9))
    assert [r["step"] for r in records] == [1] and read_checkpoint_header(tmp_path)[0] == 1
    assert list(train(TINY, tmp_path))[-1]["step"] == TINY.steps
    assert list(train(TINY, tmp_path)) == []


def test_finish_plan_starts_the_decay_at_the_checkpoint_and_keeps_it(tmp_path):
    session = train(replace(TINY, steps=100), tmp_path, checkpoint_every=0)
    for _ in range(3):
        next(session)
    session.close()
    config = finish_plan(tmp_path, 4)
    assert (config.steps, config.decay_steps) == (7, 4)
    rates = []
    session = train(config, tmp_path, checkpoint_every=0)
    rates.append(next(session)["lr"])
    session.close()
    assert finish_plan(tmp_path, 4) == config
    rates += [r["lr"] for r in train(finish_plan(tmp_path, 4), tmp_path)]
    assert rates == pytest.approx([config.lr * k / 4 for k in (4, 3, 2, 1)])
    with pytest.raises(ValueError, match="decay_steps = 0"):
        finish_plan(tmp_path, 0)


def test_other_settings_do_not_resume(tmp_path):
    list(train(TINY, tmp_path))
    with pytest.raises(ValueError, match="lr: 0.003 there, 0.01 asked.*output_dir"):
        next(train(replace(TINY, lr=0.01), tmp_path))
    with pytest.raises(FileNotFoundError, match="train first"):
        finish_plan(tmp_path / "other", 4)


@pytest.fixture
def first_weights(tmp_path):
    list(run_training(TINY, *toy_data(), tmp_path / "first", device="cpu", log_every=1))
    return str(export_weights(tmp_path / "first", tmp_path / "first_weights"))


def test_a_training_begins_with_given_weights_and_resumes_without_them(tmp_path, first_weights):
    config = replace(TINY, start_from=first_weights, seed=1, lr=1e-9, vector_lr=1e-9)
    given = load_file(Path(first_weights) / fmnist.WEIGHTS)
    list(train(config, tmp_path / "still"))
    for name, value in load_file(tmp_path / "still" / CHECKPOINT).items():
        if name.startswith(("network.", "average.")):
            torch.testing.assert_close(
                value, given[name.partition(".")[2]].float(), rtol=0, atol=1e-6
            )
    config = replace(config, lr=3e-3, vector_lr=1e-3)
    list(train(config, tmp_path / "whole"))
    session = train(config, tmp_path / "resumed", checkpoint_every=0)
    next(session)
    session.close()
    shutil.rmtree(first_weights)
    list(train(config, tmp_path / "resumed"))
    assert equal_checkpoints(tmp_path / "whole", tmp_path / "resumed")
    with pytest.raises(ValueError, match="start_from: .* asked"):
        next(train(replace(config, start_from=""), tmp_path / "resumed"))


def test_weights_tell_every_training_they_went_through(tmp_path, first_weights):
    list(
        train(
            replace(TINY, start_from=first_weights, steps=3, guidance_scale=1.5),
            tmp_path / "second",
        )
    )
    told = json.loads(
        (export_weights(tmp_path / "second", tmp_path / "weights") / "training.json").read_text()
    )
    first, second = training_stages(told)
    assert (first["steps_done"], second["steps_done"], second["config"]["guidance_scale"]) == (
        TINY.steps,
        3,
        1.5,
    )
    assert (
        first == json.loads((Path(first_weights) / "training.json").read_text())
        and "before" not in first
    )
    assert (
        told["before"]["sha256"]
        == hashlib.sha256((Path(first_weights) / fmnist.WEIGHTS).read_bytes()).hexdigest()
    )
    (Path(first_weights) / "training.json").unlink()
    list(train(replace(TINY, start_from=first_weights, steps=3), tmp_path / "third"))
    told = json.loads(
        (export_weights(tmp_path / "third", tmp_path / "others") / "training.json").read_text()
    )
    assert told["before"]["training"] is None and training_stages(told) == [told]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(widths=(8, 24)), r"block_out_channels: \[8, 16\] there, \[8, 24\] asked"),
        (dict(head_dim=4), "attention_head_dim: 8 there, 4 asked"),
        (dict(start_from="nowhere"), "'nowhere': no weights can be read there"),
    ],
)
def test_weights_of_another_network_are_refused_before_training(
    tmp_path, first_weights, change, words
):
    with pytest.raises(ValueError, match=words):
        next(train(replace(TINY, **{"start_from": first_weights, **change}), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_broken_file_of_weights_is_refused(first_weights):
    path = Path(first_weights) / fmnist.WEIGHTS
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="no weights can be read there .*model.safetensors"):
        starting_weights(replace(TINY, start_from=first_weights))
    fmnist.save_safetensors_atomic(path, {"conv_in.weight": torch.zeros(8, 1, 3, 3)}, {})
    with pytest.raises(ValueError, match="not those of its config.json .*conv_in.bias"):
        starting_weights(replace(TINY, start_from=first_weights))
    with pytest.raises(ValueError, match="TeacherConfig.start_from = "):
        replace(TINY, start_from=path)
    (path.parent / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="no weights can be read there"):
        starting_weights(replace(TINY, start_from=first_weights))


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (torch.zeros(4, 1, 28, 28), torch.zeros(4).long(), r"\(4, 1, 28, 28\)"),
        (torch.zeros(0, 1, 32, 32), torch.zeros(0).long(), "N >= 1"),
        (torch.zeros(4, 1, 32, 32), torch.zeros(3).long(), "4 images"),
        (torch.zeros(4, 1, 32, 32), torch.full((4,), 10), "classes 0..9"),
    ],
)
def test_bad_data_is_refused_before_training(tmp_path, images, labels, words):
    with pytest.raises(ValueError, match=words):
        next(train_teacher(TINY, images, labels, tmp_path, device="cpu"))
    assert not any(tmp_path.iterdir())


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    session = train(TINY, tmp_path, checkpoint_every=0)
    next(session)
    broken = torch.full((4,), torch.nan)
    monkeypatch.setattr(
        fmnist, "noise_errors", lambda network, *_: network.conv_in.weight.sum() * broken
    )
    with pytest.raises(FloatingPointError, match="lower lr = 0.003"):
        next(session)
    assert read_checkpoint_header(tmp_path)[0] == 1


@pytest.mark.parametrize(
    "field, value",
    [
        ("widths", (12,)),
        ("widths", ()),
        ("size", 31),
        ("steps", 0),
        ("lr", 0.0),
        ("vector_lr", 2.0),
        ("ema_decay", 1.0),
        ("label_dropout", -0.1),
        ("min_snr_gamma", -1),
        ("precision", "float16"),
        ("decay_steps", 6),
        ("batch_size", 0),
    ],
)
def test_settings_are_checked_by_name(field, value):
    with pytest.raises(ValueError, match=f"TeacherConfig.{field} = "):
        replace(TINY, **{field: value})


def test_export_is_read_by_diffusers(tmp_path):
    list(train(TINY, tmp_path / "run"))
    export_weights(tmp_path / "run", tmp_path / "weights")
    network = UNet2DModel.from_pretrained(tmp_path / "weights").float()
    stored = load_file(tmp_path / "run" / CHECKPOINT)
    for name, value in network.state_dict().items():
        assert torch.equal(value, stored[f"average.{name}"].half().float())
    card = json.loads((tmp_path / "weights" / "training.json").read_text())
    assert card["steps_done"] == TINY.steps and card["config"]["widths"] == [8, 16]
    assert str(tmp_path) not in (tmp_path / "weights" / "config.json").read_text()


def test_shipped_weights_are_small_and_predict_noise():
    folder = REPOSITORY / "gas_nb" / "weights" / "fmnist"
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 8 * 2**20
    network = UNet2DModel.from_pretrained(folder).float().eval()
    image = -torch.ones(8, 1, 32, 32)
    image[:, :, 6:26, 10:22] = 0.5  # a plain dress
    noise = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    a = fmnist.ddpm_alphas_cumprod()[500].float()
    with torch.no_grad():
        guess = network(
            a.sqrt() * image + (1 - a).sqrt() * noise, 500, class_labels=torch.full((8,), NO_LABEL)
        ).sample
    assert (guess - noise).square().mean() < 0.1


@pytest.mark.slow
def test_the_notebook_runs_under_papermill_from_any_folder(tmp_path):
    for notebook, parameters in (("fmnist", ["-p", "steps", "3"]), ("fmnist_classifier", [])):
        out = tmp_path / notebook
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(REPOSITORY / "nbs" / "teachers" / f"{notebook}.ipynb"),
            str(tmp_path / "out.ipynb"),
            "-p",
            "dry_run",
            "True",
            "-p",
            "output_dir",
            str(out),
            *parameters,
        ]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "fmnist" / "samples.png").is_file()
    assert read_checkpoint_header(tmp_path / "fmnist")[0] == 3
    assert (
        json.loads((tmp_path / "fmnist_classifier" / "model_card.json").read_text())["epochs"] == 1
    )
