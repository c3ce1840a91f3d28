"""The programs for one GPU, on the CPU and tiny: their step, their choice, a whole run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gas_nb.teachers.fmnist import loss_weights, make_network, make_optimizers, noise_errors
from gas_nb.teachers.fmnist_card import seen_in_training

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import train_teacher_gpu as gpu  # noqa: E402

CPU = torch.device("cpu")


def library_gradients(network, config, images, labels, draws):
    errors = noise_errors(network, images, labels, draws)
    loss = (errors * loss_weights(config.min_snr_gamma).float()[draws.timesteps]).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)


def test_a_step_is_the_step_of_the_library():
    images, labels = gpu.data(True, "train")
    config = replace(gpu.recipe(True, False), warmup_steps=0)
    run, network = gpu.Run(config, images, labels), make_network(config)
    run.plan(None, 0, 0.9)
    torch.manual_seed(5)
    run.step()
    torch.manual_seed(5)
    library_gradients(network, config, images, labels, run.draws())
    for optimizer in make_optimizers(network, config).values():
        optimizer.step()
    for (name, p), q in zip(network.named_parameters(), run.network.parameters()):
        if "to_k.bias" not in name:  # no gradient but rounding
            torch.testing.assert_close(q, p, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("shape", [(3, 4, 9), (2, 9, 4)])
def test_matrices_are_orthogonalised_together_as_one_by_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    from gas_nb.teachers.fmnist import orthogonalised

    torch.testing.assert_close(
        gpu.orthogonalised(x), torch.stack([orthogonalised(m) for m in x]), atol=1e-5, rtol=1e-4
    )


def test_the_ends_are_the_nearest_with_enough_of_their_class_and_one_stronger():
    def row(scale, share, frechet, start=0, stop=1000):
        return gpu.Guidance(scale, start, stop), dict(share=share, frechet=frechet)

    found = [
        row(1.0, 0.92, 0.05),
        row(1.1, 0.93, 0.06),
        row(1.2, 0.95, 0.08),
        row(1.5, 0.97, 0.3),
        row(1.3, 0.945, 0.07, 100, 650),
        row(1.6, 0.96, 0.2, 100, 650),
    ]
    assert [g.name for g in gpu.ends(found)] == [
        "guided-1.3-100-650",
        "guided-1.6-100-650",
        "guided-1.2",
    ]


def test_the_choice_needs_the_share_first():
    judged = {
        "a": dict(share=0.93, frechet=0.02),
        "b": dict(share=0.95, frechet=0.08),
        "c": dict(share=0.96, frechet=0.09),
    }
    assert gpu.choose(judged) == "b"
    assert (
        gpu.choose({"a": dict(share=0.91, frechet=0.02), "c": dict(share=0.92, frechet=0.1)}) == "c"
    )


def test_a_dry_run_passes_through_every_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "Compiler", lambda config, clock: None)
    gpu.whole_run(gpu.Clock(tmp_path, gpu.time.time(), 12), True, CPU)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["chosen"] in figures["candidates"] and "scan" in figures
    training = json.loads((tmp_path / "chosen" / "training.json").read_text())
    assert training["images_seen"] == training["steps_done"] * training["config"]["batch_size"]
    assert "Seen in training" in seen_in_training(training)
