"""Any callable as a teacher: what it is asked, what is refused, and the same solver in the end."""

import copy
import threading
import urllib.request
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import numpy as np
import pipelines
import pytest
import torch
from torch import nn

from gas_nb.data import generate_pairs, make_pairs, pairs_folder, teacher_differences
from gas_nb.denoiser import fingerprint, tolerance
from gas_nb.schedule import NoiseSchedule
from gas_nb.teacher import function_teacher, load_teacher
from gas_nb.training import TrainConfig, train

VP = NoiseSchedule.ddpm()
CLASSES = [str(digit) for digit in range(10)]
mine = partial(function_teacher, shape=(1, 8, 8), schedule=VP)
labelled = partial(mine, classes=CLASSES, null=10)
CONFIG = TrainConfig(
    teacher="function",
    nfe=3,
    condition="none",
    n_pairs=48,
    n_val=32,
    fit_pairs=32,
    fit_steps=2,
    adversarial_weight=0,
    device="cpu",
)


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture(scope="module")
def net(digits):
    return copy.deepcopy(digits.denoiser.net).eval()


@pytest.fixture(scope="module")
def fitted(digits):
    return held_out_loss(digits)


def held_out_loss(teacher, config=CONFIG):
    return list(train(config, teacher))[-1].val_loss


def example(n=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    return x, torch.linspace(900, 100, n), torch.arange(n)


class Stepless(nn.Module):
    """The network of `digits` without its table of times: (x, alpha, sigma, label)."""

    def __init__(self, net):
        super().__init__()
        self.register_buffer("keys", net.keys.T.contiguous())
        self.register_buffer("labels", net.labels)
        self.s = net.s

    def forward(self, x, alpha, sigma, label):
        v = alpha**2 * self.s**2 + sigma**2
        pixels, scale, shift = x.flatten(1), (alpha / v).float(), (-(alpha**2) / (2 * v)).float()
        logits = torch.cat([scale * pixels, shift], 1) @ self.keys
        other = (self.labels != label[:, None]) & (label[:, None] < 10)
        mean = logits.masked_fill(other, -1e9).softmax(1) @ self.keys[:-1].T
        return ((sigma / v).float() * (pixels - alpha.float() * mean)).reshape(x.shape)


def levels(t):
    t = torch.as_tensor(t).double() / 1000 + 1 / 1000
    return [level(t)[:, None] for level in (VP.alpha, VP.sigma)]


# --- the same solver


def traced(net):
    return torch.jit.trace(net, example(), check_trace=False)


def exported(net):
    rows = ({0: torch.export.Dim.DYNAMIC},) * 4
    x, t, label = example()
    module = torch.export.export(
        Stepless(net), (x, *levels(t), label), dynamic_shapes=rows
    ).module()
    return lambda x, t, label: module(x, *levels(t), label)


def compiled(net):
    return torch.compile(net, backend="eager")


def by_arrays(net):
    def f(x, t, label):
        assert x.dtype == t.dtype == np.float32 and label.dtype == np.int64
        return [net(*map(torch.from_numpy, (x, t, label))).numpy()]

    return partial(f)


@pytest.mark.parametrize("kind", [traced, exported, compiled, by_arrays])
def test_a_solver_fitted_through_it_is_that_of_the_module(kind, net, fitted):
    teacher = labelled(kind(net), numpy=kind is by_arrays)
    teacher.check()
    assert held_out_loss(teacher) == pytest.approx(fitted, abs=1e-4)


def test_an_onnx_session_gives_the_same_solver(net, fitted, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, t, label = example()
    names = ["x", "alpha", "sigma", "label"]
    torch.onnx.export(
        Stepless(net).eval(),
        (x, *levels(t), label),
        tmp_path / "digits.onnx",
        dynamo=True,
        verbose=False,
        input_names=names,
        dynamic_shapes=({0: "rows"},) * 4,
    )
    session = runtime.InferenceSession(
        str(tmp_path / "digits.onnx"), providers=["CPUExecutionProvider"]
    )

    def f(x, t, label):
        alpha, sigma = (level.numpy() for level in levels(t))
        return session.run(None, dict(zip(names, (x, alpha, sigma, label))))

    assert held_out_loss(labelled(f, numpy=True)) == pytest.approx(fitted, abs=1e-4)


class Mixed(nn.Module):
    """The network of `digits` with a layer behind it that a lower precision rounds."""

    def __init__(self, net):
        super().__init__()
        self.net, self.layer = net, nn.Linear(64, 64)
        self.layer.weight.data = torch.eye(64)
        self.layer.bias.data.zero_()

    def forward(self, x, t, label):
        noise = self.net(x.float(), t, label).flatten(1)
        return self.layer(noise.to(x.dtype)).reshape(x.shape)


def test_a_network_of_lower_precision_is_fitted(net, fitted):
    plain = Mixed(net).eval().requires_grad_(False)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear})
    half = copy.deepcopy(plain)
    half.layer.bfloat16()
    int8 = labelled(quantised, tolerance=0.05)
    bfloat16 = labelled(half, dtype=torch.bfloat16)
    assert held_out_loss(labelled(plain)) == pytest.approx(fitted, abs=1e-4)
    for teacher, size, most in ((int8, 0.1, 0.12), (bfloat16, 0.03, 0.075)):
        coarse = replace(CONFIG, fit_steps=4, fit=replace(CONFIG.fit, difference=size))
        assert held_out_loss(teacher, coarse) < most
    assert [tolerance(teacher.denoiser) for teacher in (int8, bfloat16)] == [0.05, 0.05]
    before = fingerprint(quantised)
    halved = torch.quantize_per_tensor(torch.eye(64) / 2, 0.1, 0, torch.qint8)
    quantised.layer.set_weight_bias(halved, None)
    assert fingerprint(quantised) != before


class Remote(BaseHTTPRequestHandler):
    """Raw float32 in and out: one row is an image, its time and its label."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        rows = torch.from_numpy(np.frombuffer(body, np.float32).reshape(-1, 66).copy())
        answer = self.server.net(rows[:, :64].reshape(-1, 1, 8, 8), rows[:, 64], rows[:, 65].long())
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.numpy().tobytes())

    def log_message(self, *args):
        pass


@pytest.fixture
def address(net):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Remote)
    server.net = net
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked_at(address, x, t, label):
    rows = np.concatenate([x.reshape(len(x), -1), t[:, None], label[:, None]], 1)
    body = rows.astype(np.float32).tobytes()
    with urllib.request.urlopen(address, body, timeout=30) as answer:
        return np.frombuffer(answer.read(), np.float32).reshape(x.shape)


def test_a_remote_call_gives_the_same_solver(address, fitted):
    teacher = labelled(partial(asked_at, address), numpy=True)
    assert held_out_loss(teacher) == pytest.approx(fitted, abs=1e-4)
    assert teacher.denoiser.net.evaluations > 48 * 20


@pytest.mark.slow
def test_an_onnx_session_of_fmnist_gives_the_same_solver(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    fmnist = load_teacher("fmnist", "cpu")
    file, names = tmp_path / "fmnist.onnx", ["x", "t", "label"]
    torch.onnx.export(
        fmnist.denoiser.net.eval(),
        (torch.randn(2, 1, 32, 32), torch.tensor([900.0, 3.0]), torch.tensor([1, 10])),
        file,
        dynamo=True,
        verbose=False,
        input_names=names,
        dynamic_shapes=({0: "rows"},) * 3,
    )
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    teacher = function_teacher(
        lambda *given: session.run(None, dict(zip(names, given))),
        fmnist.shape,
        fmnist.schedule,
        classes=fmnist.class_names,
        null=10,
        numpy=True,
    )
    config = replace(CONFIG, nfe=2, n_pairs=8, n_val=8, fit_pairs=8, fit_steps=1)
    pairs = make_pairs(teacher, range(8)), make_pairs(teacher, range(8, 16))
    losses = [list(train(config, each, pairs=pairs))[-1].val_loss for each in (fmnist, teacher)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


# --- what it is asked


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_function_gets_no_more_rows_than_it_takes(net, digits, guidance_scale, fixed):
    seen = []

    def f(x, t, label):
        seen.append(len(x))
        return net(x, t, label)

    limit = dict(fixed_batch=3) if fixed else dict(batch_size=3)
    teacher = labelled(f, guidance_scale=guidance_scale, **limit)
    got = teacher.generate(range(7), 5)
    goal = digits.with_guidance(guidance_scale).generate(range(7), 5)
    torch.testing.assert_close(got, goal, rtol=1e-4, atol=1e-4)
    assert set(seen) == {3} if fixed else max(seen) == 3
    counted = teacher.denoiser.net
    assert counted.evaluations == 1 + 20 * 7 * int(guidance_scale)
    assert counted.calls == len(seen)


def test_arrays_may_be_overwritten_and_answers_come_in_any_dtype():
    def f(x, t):
        answer = x.astype(np.float64) / 2
        x[:] = np.nan
        t[:] = np.nan
        return answer

    other = mine(lambda x, t: x / 2)
    assert torch.equal(mine(f, numpy=True).generate(range(3)), other.generate(range(3)))
    assert mine(lambda x, t: x.half() / 2).generate(0).dtype == torch.float32
    asked = mine(lambda x, t: x / 2, dtype=torch.float64)
    torch.testing.assert_close(asked.generate(range(3)), other.generate(range(3)))


def test_load_teacher_takes_a_function_and_no_pipeline(net):
    teacher = load_teacher(lambda x, t: net(x, t), schedule=VP, shape=(1, 8, 8))
    assert teacher.name == "function" and teacher.shape == (1, 8, 8)
    with pytest.raises(ValueError, match="has no option shapes: there are shape, schedule"):
        load_teacher(net, shapes=(1, 8, 8))
    with pytest.raises(ValueError, match="teacher"):
        load_teacher(pipelines.ddpm(), schedule=VP, shape=(1, 8, 8))


# --- what is refused


async def later(x, t):
    return x


def broken(x, t):
    raise ConnectionError("nobody there")


def half(x, t):
    return x / 2


@pytest.mark.parametrize(
    ("f", "options", "message"),
    [
        (3, {}, "f=3: give a function"),
        (later, {}, "coroutine"),
        (broken, {}, r"f\(x, t\) failed.*shape \(1, 1, 8, 8\): ConnectionError: nobody there"),
        (half, dict(classes=["a"]), r"f\(x, t, label\) failed.*TypeError"),
        (half, dict(numpy=True, dtype=torch.bfloat16), "arrays have no such numbers"),
        (half, dict(dtype=torch.int64), "dtype=torch.int64"),
        (half, dict(dtype="float32"), "dtype='float32'"),
        (half, dict(shape=None), r"give shape=, one sample's"),
        (half, dict(shape=(1, 0)), r"shape=\(1, 0\)"),
        (half, dict(schedule=None), "schedule=None"),
        (half, dict(schedule="ddpm"), "give a NoiseSchedule"),
        (half, dict(prediction="noise"), "prediction 'noise'"),
        (half, dict(guidance_scale=2.0), "no null condition"),
        (half, dict(null="any"), "null='any'"),
        (half, dict(batch_size=0), "batch_size=0"),
        (half, dict(fixed_batch=2.5), "fixed_batch=2.5"),
        (half, dict(tolerance=2), "tolerance=2"),
        (half, dict(classes="abc"), "classes='abc': give a list"),
        (half, dict(recipe=dict(solver="x")), "recipe solver 'x'"),
        (half, dict(device="cuda:99"), "cuda"),
        (lambda x, t: x[..., :1], {}, "they must agree"),
        (lambda x, t: torch.cat([x, x], 1), {}, "predicts its variance too"),
        (lambda x, t: x[0], dict(fixed_batch=2), "they must agree"),
        (lambda x, t: x.long(), {}, "answers with torch.int64"),
        (lambda x, t: x / 0, {}, "not finite"),
        (lambda x, t: [x, x], {}, "answers with a list"),
        (lambda x, t: dict(out=x), {}, "answers with a dict"),
        (lambda x, t: np.array(["a"]), {}, "return float32"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_at_once(f, options, message):
    with pytest.raises(ValueError, match=message):
        mine(f, **options)


@pytest.mark.parametrize(
    ("f", "options", "message"),
    [
        (lambda x, t: torch.nn.functional.dropout(x, 0.1), {}, "answers the same question"),
        (lambda x, t: x - x.mean(0), {}, "other rows of the batch"),
        (lambda x, t: x.mul_(0.5), {}, "in place"),
        (lambda x, t: torch.where(t[:, None, None, None] < 300, torch.nan, x), {}, "not finite"),
    ],
)
def test_what_shows_in_more_than_one_answer_is_refused_before_pairs(f, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate_pairs(mine(f, **options), range(4), tmp_path / "d")
    assert not list(tmp_path.rglob("*.safetensors"))


PUBLISHED = dict(adversarial_weight=0.1, game="published")


@pytest.mark.parametrize("change", [dict(method="adam"), PUBLISHED])
def test_what_needs_gradients_is_refused_before_pairs(change, net, tmp_path):
    teacher = mine(lambda x, t: net(*map(torch.from_numpy, (x, t))), numpy=True)
    asked = teacher.denoiser.net.evaluations
    with pytest.raises(ValueError, match="needs gradients through the network.*gauss_newton"):
        next(train(replace(CONFIG, **change), teacher, tmp_path / "run"))
    assert teacher.denoiser.net.evaluations == asked + 1
    assert not (tmp_path / "run").exists()


# --- identity


def test_pairs_of_another_function_are_not_taken(net, tmp_path):
    first = mine(lambda x, t: x / 2)
    folder = pairs_folder(tmp_path, first, range(4))
    generate_pairs(first, range(4), folder)
    assert pairs_folder(tmp_path, mine(half), range(4)) == folder
    for other in (
        mine(lambda x, t: 0.51 * x),
        mine(half, weights_hash="b"),
        mine(half, name="other"),
        mine(lambda x, t: net(x, t)),
    ):
        assert pairs_folder(tmp_path, other, range(4)) != folder
        with pytest.raises(ValueError, match="holds other pairs: teacher"):
            generate_pairs(other, range(4), folder)


def test_modules_that_a_function_uses_belong_to_its_identity():
    class Owner:
        def __init__(self, inner):
            self.inner = inner

        def ask(self, x, t):
            return x + self.inner(x)

        __call__ = ask

    def ask(inner, x, t):
        return x + inner(x)

    def closed_over(inner):
        return lambda x, t: x + inner(x)

    for how in (closed_over, Owner, lambda inner: partial(ask, inner), lambda n: Owner(n).ask):
        torch.manual_seed(0)
        inner = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
        teacher = mine(how(inner))
        before = teacher.config
        with torch.no_grad():
            inner.weight[0, 0, 0, 0] += 1e-4  # less than any measured tolerance
        assert teacher_differences(before, teacher.config)


def test_compiled_and_plain_modules_make_the_same_pairs(net):
    assert not teacher_differences(labelled(net).config, labelled(compiled(net)).config)
    assert make_pairs(labelled(net), range(2)).x_0.shape == (2, 1, 8, 8)
