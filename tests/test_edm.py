"""EDM networks: parity with the published code, and files read without running what is in them."""

import json
import os
import pickle

import numpy as np
import nvidia_pickle
import pytest
import torch
from golden import GOLDEN

from gas_nb.runtime.files import save_safetensors_atomic
from gas_nb.runtime.pickles import Unreadable
from gas_nb.schedule import NoiseSchedule
from gas_nb.solver import GeneralizedSolver
from gas_nb.teachers.edm import (
    EDMPrecond,
    EDMTeacherNet,
    load_edm_teacher,
    read_edm,
    read_edm_pickle,
    save_edm,
)

CASES = json.loads((GOLDEN / "edm_network.json").read_text())
with np.load(GOLDEN / "edm_network.npz") as z:
    ARRAYS = {k: torch.from_numpy(z[k]) for k in z.files}


def state_of(case):
    prefix = case["case"] + ".state."
    return {k[len(prefix) :]: v for k, v in ARRAYS.items() if k.startswith(prefix)}


def published_kwargs(case):
    """What the published training code passes to EDMPrecond for its DDPM++ networks."""
    fixed = dict(
        img_channels=3,
        label_dim=0,
        use_fp16=False,
        model_type="SongUNet",
        embedding_type="positional",
        encoder_type="standard",
        decoder_type="standard",
        channel_mult_noise=1,
        resample_filter=[1, 1],
        dropout=0.13,
    )
    return fixed | case["kwargs"]


def write_published(path, case, class_name="EDMPrecond", **changes):
    nvidia_pickle.dump(
        path,
        "ema",
        nvidia_pickle.tree(state_of(case)),
        class_name,
        published_kwargs(case) | changes,
    )


def check(net, case):
    x, sigma = ARRAYS[case["case"] + ".x"].float(), ARRAYS[case["case"] + ".sigma"].float()
    with torch.no_grad():
        got = torch.stack([net(x * s, s) for s in sigma])
    expected = ARRAYS[case["case"] + ".denoised"]
    assert (got - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["case"])
def test_parity_with_the_published_network(case):
    net = EDMPrecond(**case["kwargs"])
    net.load_state_dict(state_of(case))
    check(net.eval(), case)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["case"])
def test_published_file(case, protocol, tmp_path):
    path = tmp_path / "edm.pkl"
    nvidia_pickle.dump(
        path,
        "ema",
        nvidia_pickle.tree(state_of(case)),
        "EDMPrecond",
        published_kwargs(case),
        protocol,
    )
    assert nvidia_pickle.SOURCE.encode() in path.read_bytes()
    check(read_edm_pickle(path), case)
    save_edm(read_edm(path), tmp_path / "edm.safetensors")
    check(read_edm(tmp_path / "edm.safetensors"), case)


def test_half_precision_files_become_float32(tmp_path):
    state = {k: v.half() for k, v in state_of(CASES[0]).items()}
    nvidia_pickle.dump(
        tmp_path / "h.pkl",
        "ema",
        nvidia_pickle.tree(state),
        "EDMPrecond",
        published_kwargs(CASES[0]),
    )
    assert {p.dtype for p in read_edm(tmp_path / "h.pkl").parameters()} == {torch.float32}


def test_other_networks_are_named_and_refused(tmp_path):
    path, case = tmp_path / "o.pkl", CASES[0]
    refused = [
        ("VPPrecond", {}, "VPPrecond"),
        ("EDMPrecond", dict(model_type="DhariwalUNet"), "DhariwalUNet"),
        ("EDMPrecond", dict(embedding_type="fourier"), "embedding_type='fourier'"),
        ("EDMPrecond", dict(resample_filter=[1, 3, 3, 1]), "resample_filter"),
        ("EDMPrecond", dict(num_blocks=3), "do not fit"),
        ("EDMPrecond", dict(channel_mult=[1, "x"]), "make no network"),
        ("EDMPrecond", dict(img_resolution=None), "img_resolution"),
    ]
    for name, changes, message in refused:
        write_published(path, case, name, **changes)
        with pytest.raises(ValueError, match=f"o.pkl.*{message}"):
            read_edm(path)
    path.write_bytes(pickle.dumps(dict(G_ema=1)))
    with pytest.raises(ValueError, match='no network under "ema"'):
        read_edm(path)


def test_networks_of_any_size_are_not_built(tmp_path):
    """A few bytes may ask for millions of layers: the
    numbers are looked at before a layer is made."""
    path = tmp_path / "n.pkl"
    for changes in (
        dict(num_blocks=10**7),
        dict(model_channels=10**9),
        dict(img_resolution=-8),
        dict(channel_mult=[1] * 50),
        dict(label_dim=2.5),
    ):
        write_published(path, CASES[0], **changes)
        with pytest.raises(ValueError, match=f"n.pkl.*{next(iter(changes))}="):
            read_edm(path)
    good = EDMPrecond(
        img_resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)
    )
    for header in (
        dict(format="gas_nb.edm", config="[1]"),
        dict(format="gas_nb.edm"),
        dict(format="other", config="{}"),
        dict(format="gas_nb.edm", config="{"),
    ):
        save_safetensors_atomic(tmp_path / "n.safetensors", good.state_dict(), header)
        with pytest.raises(ValueError, match="n.safetensors is not an EDM network"):
            read_edm(tmp_path / "n.safetensors")
    for data in (b"", b"hello", (10**9).to_bytes(8, "little") + b"{}"):
        (tmp_path / "n.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match="n.safetensors is not an EDM network"):
            read_edm(tmp_path / "n.safetensors")


def test_hostile_and_damaged_files(tmp_path):
    write_published(tmp_path / "good.pkl", CASES[0])
    whole = (tmp_path / "good.pkl").read_bytes()
    for n in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pkl").write_bytes(whole[:n])
        with pytest.raises(Unreadable, match="cut.pkl is not a complete pickle"):
            read_edm(tmp_path / "cut.pkl")

    class Hostile:
        def __init__(self, f, *args):
            self.call = f, args

        def __reduce__(self):
            return self.call

    ran = str(tmp_path / "ran")
    for thing, name in (
        (Hostile(os.mkdir, ran), "posix.mkdir"),
        (Hostile(eval, f"__import__('os').mkdir({ran!r})"), "builtins.eval"),
        (Hostile(exec, nvidia_pickle.SOURCE), "builtins.exec"),
    ):
        for content in (thing, dict(ema=thing), [torch.ones(1), thing]):
            (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(content))
            with pytest.raises(Unreadable, match=f"hostile.pkl is refused: it asks for {name}"):
                read_edm(tmp_path / "hostile.pkl")
    assert not os.path.exists(ran)
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="bad.safetensors"):
        read_edm(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("labels", [0, 5])
def test_teacher(tmp_path, labels):
    torch.manual_seed(0)
    net = EDMPrecond(
        img_resolution=8,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        label_dim=labels,
    ).eval()
    save_edm(net, tmp_path / "net.safetensors")
    teacher = load_edm_teacher(tmp_path / "net.safetensors", "cpu")
    assert (
        teacher.shape == (3, 8, 8)
        and teacher.n_classes == labels
        and teacher.schedule == NoiseSchedule.vp_edm()
    )
    assert (
        teacher.recipe["variant"] == "bh1" and teacher.t_eps == 1e-4 and teacher.tableau.nfe == 20
    )
    condition = [1, 2, 3] if labels else None
    out = teacher.generate(range(3), condition)
    assert out.shape == (3, 3, 8, 8) and out.isfinite().all()
    if labels:
        assert not torch.allclose(out, teacher.generate(range(3), 4)) and not torch.allclose(
            out, teacher.with_guidance(2.0).generate(range(3), condition)
        )
    student = GeneralizedSolver(teacher.schedule, 4, t_eps=teacher.t_eps)
    with torch.no_grad():
        assert (
            student.sample(
                teacher.denoiser, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]) if labels else None
            )
            .isfinite()
            .all()
        )


def test_time_convention():
    """D at time t of the state alpha x + sigma eps is EDM's D
    of x + (sigma/alpha) eps at that level; level 80 at t=1."""
    schedule, net = NoiseSchedule.vp_edm(), EDMPrecond(**CASES[0]["kwargs"])
    net.load_state_dict(state_of(CASES[0]))
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = (f(t).float().reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    with torch.no_grad():
        ours, theirs = (
            EDMTeacherNet(net.eval(), schedule)(x, t),
            net(x / alpha, (sigma / alpha).flatten()),
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (sigma / alpha)[-1].item() == pytest.approx(80, rel=1e-3)
