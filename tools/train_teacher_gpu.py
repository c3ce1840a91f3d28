"""Train the Fashion-MNIST teacher on one GPU by the clock: a base, ends with guidance, judged.

`python tools/train_teacher_gpu.py WORK --seconds 530` takes the recipe of
nbs/examples/fmnist_teacher (Muon, Min-SNR, label dropout, guidance built in, EMA)
and makes it fast: a whole step, draws and optimisers included, is one CUDA graph, in
bfloat16, with the data on the device. It begins with the plain network while a
second process compiles it, and changes over when that has worked and is faster. The
base ends before the clock does; guidance of several strengths is then tried at
sampling, and the best of them are trained in, in float32. WORK/candidates/NAME holds
every network in diffusers' layout with its training.json, WORK/figures.json what was
measured; both are written as the run goes. `--dry`: everything tiny, on any device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import gas_nb.runtime.device  # noqa: F401  before diffusers
from gas_nb.data import eval_seeds, noise, random_labels
from gas_nb.denoiser import Denoiser
from gas_nb.runtime.files import write_json_atomic
from gas_nb.teacher import LabelledUNet, Teacher, load_fmnist_teacher
from gas_nb.teachers.fmnist import NO_LABEL, WEIGHTS
from gas_nb.teachers.fmnist_classifier import load_classifier
from gas_nb.teachers.fmnist_data import load_fashion_mnist, to_unit_range

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from fmnist_teacher.card import distribution, nearest_images
from fmnist_teacher.config import TeacherConfig
from fmnist_teacher.loss import Draws, ddpm_alphas_cumprod, loss_weights, noise_errors
from fmnist_teacher.network import make_network, save_diffusers

LONGEST = 400_000  # steps for which there is room in the tables of rates
DATA = "Fashion-MNIST, 60,000 training images, padded to 32x32 with black, scaled to [-1, 1]"
FAMILIES = {
    "everywhere": (0, 1000, (1.1, 1.2, 1.35, 1.5)),
    "middle": (100, 650, (1.3, 1.6, 2.0)),
    "late": (0, 500, (1.5, 2.0)),
}


@dataclass(frozen=True)
class Guidance:
    """Scale `scale` at timesteps from..to-1, 1 elsewhere."""

    scale: float = 1.0
    start: int = 0
    stop: int = 1000

    def table(self) -> Tensor:
        """The scale at each timestep (1000,)."""
        table = torch.ones(1000)
        table[self.start : self.stop] = self.scale
        return table

    @property
    def name(self) -> str:
        return f"guided-{self.scale:g}" + (
            "" if (self.start, self.stop) == (0, 1000) else f"-{self.start}-{self.stop}"
        )


@dataclass
class Clock:
    """What is written down as the run goes: figures.json,
    and lines with the seconds since the start."""

    work: Path
    began: float
    seconds: float
    figures: dict = field(default_factory=dict)

    def __post_init__(self):
        self.work.mkdir(parents=True, exist_ok=True)

    def now(self) -> float:
        return time.time() - self.began

    def say(self, text: str) -> None:
        print(f"[{self.now():6.1f}] {text}", flush=True)

    def keep(self, name: str, value) -> None:
        """Add to figures.json."""
        self.figures[name] = value
        write_json_atomic(self.work / "figures.json", self.figures)
        if out := os.environ.get("OUT"):
            shutil.copy(self.work / "figures.json", out)


def orthogonalised(x: Tensor, steps: int = 5) -> Tensor:
    """`fmnist_teacher.optimiser.orthogonalised` for matrices (N, R, C) at once."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Optimisers:
    """Muon and AdamW as in `make_optimizers`, without a word to
    the host: rates and step count are tensors of the device."""

    def __init__(self, network: nn.Module, config: TeacherConfig):
        named = list(network.named_parameters())
        inside = [
            p.ndim >= 2 and not name.startswith(("conv_in", "conv_out", "class_embedding"))
            for name, p in named
        ]
        self.config = config
        self.all = [p for _, p in named]
        self.matrices = [p for (_, p), which in zip(named, inside) if which]
        self.others = [p for (_, p), which in zip(named, inside) if not which]
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.mean = [torch.zeros_like(p) for p in self.others]
        self.square = [torch.zeros_like(p) for p in self.others]
        shapes = [tuple(p.flatten(1).shape) for p in self.matrices]
        self.alike = [
            [i for i, s in enumerate(shapes) if s == shape] for shape in dict.fromkeys(shapes)
        ]

    def tensors(self) -> list[Tensor]:
        return [*self.momentum, *self.mean, *self.square]

    @torch.no_grad()
    def step(self, factor: Tensor, done: Tensor) -> None:
        """One step at `factor` () of the full rates, after
        `done` () steps; gradients clipped to norm 1."""
        grads = [p.grad for p in self.all]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        torch._foreach_mul_(grads, (1.0 / (norm + 1e-6)).clamp(max=1.0))
        self._muon(factor)
        self._adam(factor, done)

    def _muon(self, factor: Tensor) -> None:
        grads = [p.grad for p in self.matrices]
        torch._foreach_lerp_(self.momentum, grads, 0.05)
        ahead = torch._foreach_lerp(grads, self.momentum, 0.95)
        for rows in self.alike:
            update = orthogonalised(torch.stack([ahead[i].flatten(1) for i in rows]))
            update = update * (factor * (0.2 * max(update.shape[1:]) ** 0.5 * self.config.lr))
            for i, u in zip(rows, update.unbind()):
                self.matrices[i].sub_(u.reshape(self.matrices[i].shape))

    def _adam(self, factor: Tensor, done: Tensor) -> None:
        grads, rate, count = (
            [p.grad for p in self.others],
            factor * self.config.vector_lr,
            done.float() + 1,
        )
        torch._foreach_lerp_(self.mean, grads, 0.1)
        torch._foreach_mul_(self.square, 0.99)
        torch._foreach_addcmul_(self.square, grads, grads, 0.01)
        below = torch._foreach_sqrt(self.square)
        torch._foreach_mul_(below, (1 - 0.99**count).rsqrt())
        torch._foreach_add_(below, 1e-8)
        change = torch._foreach_div(self.mean, below)
        torch._foreach_mul_(change, rate / (1 - 0.9**count))
        torch._foreach_mul_(self.others, 1 - rate * 1e-4)
        torch._foreach_sub_(self.others, change)


class Run:
    """A training whose step is a fixed sequence of operations
    of the device, so that it can be one CUDA graph."""

    graphs = True  # False: where they do not work

    def __init__(
        self,
        config: TeacherConfig,
        images: Tensor,
        labels: Tensor,
        guided: bool = False,
        start: nn.Module | None = None,
    ):
        device = images.device
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.config, self.images, self.labels, self.guided, self.device = (
            config,
            images,
            labels,
            guided,
            device,
        )
        self.network = make_network(config).to(device, memory_format=layout).train()
        if start is not None:
            self.network.load_state_dict(start.state_dict())
        self.average = deepcopy(self.network).eval().requires_grad_(False)
        self.optimisers = Optimisers(self.network, config)
        self.bf16 = config.precision == "bfloat16"
        alphas = ddpm_alphas_cumprod()
        self.signal, self.noise = (v.sqrt().float().to(device) for v in (alphas, 1 - alphas))
        self.weights = loss_weights(config.min_snr_gamma).float().to(device)
        self.scales = torch.ones(1000, device=device)
        self.spread = torch.arange(config.batch_size, device=device) / config.batch_size
        self.done = torch.zeros(1, dtype=torch.long, device=device)
        self.factors = torch.ones(LONGEST, device=device)
        self.kept = torch.ones(LONGEST, device=device)  # of the average, at each step
        self.smoothed = torch.full((2,), torch.nan, device=device)
        self.forward = self.network
        self.steps, self.graph = 0, None
        torch.manual_seed(config.seed)  # every device's generator

    def tensors(self) -> list[Tensor]:
        """All that a step changes."""
        nets = [*self.network.parameters(), *self.average.parameters()]
        return [*(p.detach() for p in nets), *self.optimisers.tensors(), self.done, self.smoothed]

    def draws(self) -> Draws:
        n = self.config.batch_size
        timesteps = (
            (((torch.rand(1, device=self.device) + self.spread) % 1.0) * 1000).long().clamp(max=999)
        )
        indices = torch.randint(len(self.images), (n,), device=self.device)
        shape = (n, 1, self.config.size, self.config.size)
        return Draws(
            indices,
            timesteps,
            torch.randn(shape, device=self.device),
            torch.rand(n, device=self.device) < self.config.label_dropout,
        )

    def predict(
        self, network: nn.Module, noisy: Tensor, timesteps: Tensor, shown: Tensor
    ) -> Tensor:
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        ):
            return network(noisy, timesteps, class_labels=shown, return_dict=False)[0].float()

    def loss(self) -> tuple[Tensor, Tensor]:
        """Weighted loss and mean noise error of fresh draws, as `noise_errors` defines them."""
        d = self.draws()
        t, shown = d.timesteps, self.labels[d.indices].masked_fill(d.hidden, NO_LABEL)
        signal, sigma = (v[t].view(-1, 1, 1, 1) for v in (self.signal, self.noise))
        noisy = signal * to_unit_range(self.images[d.indices]) + sigma * d.noise
        predicted = self.predict(self.forward, noisy, t, shown)
        if self.guided:
            with torch.no_grad():
                null = self.predict(self.network, noisy, t, torch.full_like(shown, NO_LABEL))
            predicted = null + (predicted - null) / self.scales[t].view(-1, 1, 1, 1)
        errors = (predicted - d.noise).square().mean((1, 2, 3))
        return (errors * self.weights[t]).mean(), errors.detach().mean()

    def step(self) -> None:
        """One step, with nothing that the host has to wait for."""
        loss, error = self.loss()
        for p in self.optimisers.all:
            p.grad = None
        loss.backward()
        factor, kept = (v.index_select(0, self.done).view(()) for v in (self.factors, self.kept))
        self.optimisers.step(factor, self.done.view(()))
        with torch.no_grad():
            average = list(self.average.parameters())
            torch._foreach_mul_(average, kept)
            torch._foreach_add_(average, torch._foreach_mul(self.optimisers.all, 1 - kept))
            new = torch.stack([loss.detach(), error])
            self.smoothed.copy_(
                torch.where(self.smoothed.isnan(), new, self.smoothed.lerp(new, 0.02))
            )
            self.done.add_(1)

    def capture(self, forward: nn.Module | None = None, warm: int = 4) -> None:
        """Let `forward` (default: the network as it is) do
        the steps, as a CUDA graph where there is CUDA."""
        self.graph, self.forward = None, self.network if forward is None else forward
        if self.device.type != "cuda" or not Run.graphs:
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm):
                self.step()
        torch.cuda.synchronize()
        self.steps += warm
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        torch.cuda.synchronize()
        self.graph = graph

    def advance(self, steps: int) -> tuple[float, float]:
        """Do `steps` steps; loss and noise error, smoothed.
        FloatingPointError if they are not finite."""
        for _ in range(steps):
            if self.graph is None:
                self.step()
            else:
                self.graph.replay()
        self.steps += steps
        loss, error = self.smoothed.tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.steps}")
        return loss, error

    def rate(self, steps: int) -> float:
        """Images per second over `steps` steps."""
        self.advance(2)
        start = time.perf_counter()
        self.advance(steps)
        return steps * self.config.batch_size / (time.perf_counter() - start)

    def plan(self, total: int | None, decay: int, ema: float) -> None:
        """Rates from here on: warm-up, full, then over the last
        `decay` of `total` steps (None: no end yet) down to zero."""
        k = torch.arange(LONGEST, dtype=torch.float64)
        factors = ((k + 1) / max(self.config.warmup_steps, 1)).clamp(max=1)
        if total is not None:
            factors = torch.minimum(factors, ((total - k) / max(decay, 1)).clamp(0, 1))
        self.factors.copy_(factors.float())
        self.kept.copy_(
            torch.minimum(torch.tensor(ema, dtype=torch.float64), (1 + k) / (10 + k)).float()
        )

    def reset(self, start: nn.Module, guidance: Guidance) -> None:
        """Begin anew, in place, from the weights of `start`, to build `guidance` in."""
        with torch.no_grad():
            for own in (self.network, self.average):
                for p, q in zip(own.parameters(), start.parameters()):
                    p.copy_(q)
            for tensor in self.optimisers.tensors():
                tensor.zero_()
            self.done.zero_()
            self.smoothed.fill_(torch.nan)
            self.scales.copy_(guidance.table())
        self.steps = 0


def choose_batch(
    config: TeacherConfig, images: Tensor, labels: Tensor, batches: tuple[int, ...], clock: Clock
) -> int:
    """The smallest batch whose images per second, uncompiled, come to 85 % of the best."""
    rates = {}
    for batch in batches:
        try:
            run = Run(replace(config, batch_size=batch), images, labels)
            run.plan(None, 0, config.ema_decay)
            run.capture()
            rates[batch] = run.rate(12)
        except Exception:
            traceback.print_exc()
    clock.keep("batches", rates)
    clock.say(
        f"images per second by batch, uncompiled: { ({b: round(r) for b, r in rates.items()}) }"
    )
    return next(
        (b for b in batches if b in rates and rates[b] >= 0.85 * max(rates.values())),
        config.batch_size,
    )


class Compiler:
    """A second process that fills the compiler's caches;
    what fails or hangs there costs the training nothing."""

    def __init__(self, config: TeacherConfig, clock: Clock):
        self.log = clock.work / "compile.log"
        command = [sys.executable, __file__, str(clock.work), "--warm", json.dumps(asdict(config))]
        self.process = subprocess.Popen(
            command, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )

    def finished(self) -> int | None:
        """Its exit status, None as long as it works."""
        return self.process.poll()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def warm(config: TeacherConfig, images: Tensor, labels: Tensor) -> None:
    """Compile, run and capture a step, so that the next process finds it all in the caches."""
    run = Run(config, images, labels)
    run.plan(None, 0, config.ema_decay)
    run.capture(compiled(run.network))
    print(f"{run.rate(20):.0f} images per second", flush=True)


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, dynamic=False)


def change_over(run: Run, clock: Clock) -> str:
    """From the plain to the compiled network, if it works
    and is faster; what does the steps now."""
    before, plain, snapshot = run.rate(20), run.graph, [t.clone() for t in run.tensors()]
    try:
        run.capture(compiled(run.network))
        after = run.rate(20)
    except Exception:
        traceback.print_exc()
        after = 0.0
    clock.keep("compiled", dict(plain=before, compiled=after))
    clock.say(f"images per second: plain {before:.0f}, compiled {after:.0f}")
    if after > 1.05 * before:
        return "compiled"
    run.forward, run.graph = run.network, plain
    restore(run, snapshot)
    return "plain"


@torch.no_grad()
def restore(run: Run, snapshot: list[Tensor]) -> None:
    for tensor, kept in zip(run.tensors(), snapshot):
        tensor.copy_(kept)
    run.steps = int(run.done.item())


def train_base(
    run: Run, clock: Clock, until: float, compiler: Compiler | None, chunk: int, decay: float = 0.4
) -> dict:
    """Train until the clock says `until`, the rate falling over
    the last `decay` of all steps; what training.json tells."""
    run.plan(None, 0, run.config.ema_decay)
    began, curve, total, falling, mode = clock.now(), [], None, 0, "plain"
    logged = last = clock.now()
    since, snapshot, speed = run.steps, None, 0.0
    while total is None or run.steps < total:
        try:
            loss, error = run.advance(
                chunk if total is None else max(1, min(chunk, total - run.steps))
            )
        except FloatingPointError as problem:
            if snapshot is None:
                raise
            clock.say(f"{problem}: back to the last good state, at half the rates")
            restore(run, snapshot)
            run.optimisers.config = run.config = replace(
                run.config, lr=run.config.lr / 2, vector_lr=run.config.vector_lr / 2
            )
            run.capture(run.forward)
            continue
        now = clock.now()
        measured = (run.steps - since) / max(now - last, 1e-9)
        speed = 0.9 * speed + 0.1 * measured if speed else measured
        last, since = now, run.steps
        if compiler and compiler.finished() is not None and total is None:
            clock.say(f"the compiler ended with {compiler.finished()}")
            mode = change_over(run, clock) if compiler.finished() == 0 else mode
            compiler, last, since, speed = None, clock.now(), run.steps, 0.0
            continue
        if total is None:
            foreseen = min(run.steps + int(speed * max(until - now, 0)), LONGEST)
            if run.steps >= (1 - decay) * foreseen or now >= until:
                falling = max(1, foreseen - run.steps)
                total = run.steps + falling
                ema = 1 - 1 / max(20.0, falling / 8)
                run.config = replace(run.config, steps=total, decay_steps=falling, ema_decay=ema)
                run.plan(total, falling, ema)
                clock.say(
                    f"the rate falls from step {run.steps} to "
                    f"{total}, average over {falling / 8:.0f} steps"
                )
                if compiler:
                    compiler.stop()
                    compiler = None
        elif now > until + 15:
            clock.say(f"stopped at step {run.steps} of {total}")
            break
        if now - logged > 5 or run.steps == total:
            snapshot, logged = [t.clone() for t in run.tensors()], now
            curve.append(
                dict(
                    images=run.steps * run.config.batch_size,
                    hours=round((now - began) / 3600, 4),
                    error=round(error, 5),
                )
            )
            clock.say(
                f"step {run.steps}: loss {loss:.5f}, error {error:.5f}, "
                f"{speed * run.config.batch_size:.0f} images/s"
            )
    return told(run, clock, loss, error, curve, clock.now() - began, mode)


def told(
    run: Run,
    clock: Clock,
    loss: float,
    error: float,
    curve: list[dict],
    seconds: float,
    mode: str,
    **more,
) -> dict:
    """training.json: what `export_weights` writes, and where it ran."""
    cuda = run.device.type == "cuda"
    where = dict(
        device=torch.cuda.get_device_name() if cuda else "cpu",
        torch=torch.__version__,
        seconds=round(seconds, 1),
        network=mode,
        step="a CUDA graph" if run.graph else "eager",
        tf32=cuda,
        draws="on the device",
        program="tools/train_teacher_gpu.py",
    )
    return dict(
        data=DATA,
        parameters=sum(p.numel() for p in run.network.parameters()),
        steps_done=run.steps,
        images_seen=run.steps * run.config.batch_size,
        loss=loss,
        noise_error=error,
        config=asdict(run.config),
        ran=where,
        curve=curve,
        **more,
    )


def save(network: nn.Module, training: dict, clock: Clock, name: str) -> Path:
    """Write WORK/candidates/`name`; a copy of the weights goes to $OUT."""
    folder = clock.work / "candidates" / name
    folder.mkdir(parents=True, exist_ok=True)
    whole = deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
    save_diffusers(whole, folder)
    write_json_atomic(folder / "training.json", training)
    clock.keep("trainings", clock.figures.get("trainings", {}) | {name: training})
    if out := os.environ.get("OUT"):
        shutil.copy(folder / WEIGHTS, Path(out) / f"{name}.safetensors")
    clock.say(f"saved {name}")
    return folder


class GuidedNet(nn.Module):
    """net(x, net_time, label) under a scale per timestep."""

    def __init__(self, unet: nn.Module, guidance: Guidance, device: torch.device):
        super().__init__()
        self.net, self.table = LabelledUNet(unet), guidance.table().to(device)

    def forward(self, x: Tensor, net_time: Tensor, label: Tensor) -> Tensor:
        null = torch.full_like(label, NO_LABEL)
        c, n = self.net(
            torch.cat([x, x]), torch.cat([net_time, net_time]), torch.cat([label, null])
        ).chunk(2)
        scale = self.table[net_time.round().long().clamp(0, 999)].view(-1, 1, 1, 1)
        return n + scale * (c - n)


@dataclass
class Judge:
    """The figures of the card, on the same noises for all."""

    images: Tensor  # uint8, on the CPU
    device: torch.device
    n: int = 10_000

    def __post_init__(self):
        seeds = eval_seeds(self.n)
        self.x_T, self.condition = noise(seeds, (1, 32, 32)), random_labels(seeds, 10)
        self.classifier = load_classifier(self.device)

    def __call__(self, teacher: Teacher) -> dict:
        x = teacher.sample(self.x_T, self.condition).cpu()
        found = distribution(self.classifier, x, self.condition, self.images)
        return found | dict(mean_pixel=x.clamp(-1, 1).mean().item())

    def copying(self, teacher: Teacher, n: int = 500) -> dict:
        """Median distance to the nearest training image: of
        samples, and of training images to another one."""
        x, images = teacher.sample(self.x_T[:n], self.condition[:n]).cpu(), self.images
        gap = nearest_images(x, images, 1)[0].median().item()
        return dict(
            samples=gap,
            real=nearest_images(to_unit_range(images[:n]), images[n:], 1)[0].median().item(),
        )


def sampler(
    network: nn.Module, guidance: Guidance | None, device: torch.device, batch: int
) -> Teacher:
    """A teacher of `network` on the device as it is, with guidance at sampling."""
    shipped = load_fmnist_teacher(device)
    net = LabelledUNet(network) if guidance is None else GuidedNet(network, guidance, device)
    denoiser = Denoiser(
        net,
        shipped.schedule,
        "epsilon",
        null_condition=torch.tensor(NO_LABEL),
        autocast=torch.bfloat16 if device.type == "cuda" else None,
    )
    return replace(shipped, denoiser=denoiser, batch_size=batch)


def scan(
    network: nn.Module, judge: Judge, clock: Clock, until: float
) -> list[tuple[Guidance, dict]]:
    """What guidance at sampling does with the base, the
    most promising first, as long as there is time."""
    order = sorted(
        ((f, i) for f, (_, _, scales) in FAMILIES.items() for i in range(len(scales))),
        key=lambda v: (v[1] in (0, 3), v[0] == "late"),
    )
    found = [(Guidance(), judge(sampler(network, None, judge.device, 2000)))]
    for family, i in order:
        if clock.now() > until:
            break
        start, stop, scales = FAMILIES[family]
        guidance = Guidance(scales[i], start, stop)
        found.append((guidance, judge(sampler(network, guidance, judge.device, 2000))))
    for guidance, d in found:
        clock.say(
            f"at sampling, {guidance.name}: share {d['share']:.4f}, Frechet "
            f"{d['frechet']:.4f}, {d['ratio']:.2f} times"
        )
    clock.keep("scan", [dict(asdict(g), **d) for g, d in found])
    return found


def ends(found: list[tuple[Guidance, dict]], share: float = 0.943) -> list[Guidance]:
    """Which guidance to train in, the likeliest first: of every family
    the nearest to real images with enough of the class asked for, then
    one step stronger, as a little is lost in training it in."""
    families = {}
    for guidance, d in found:
        if guidance.scale > 1:
            families.setdefault((guidance.start, guidance.stop), []).append((guidance, d))
    first, stronger = [], []
    for rows in families.values():
        rows.sort(key=lambda row: row[0].scale)
        enough = [row for row in rows if row[1]["share"] >= share] or rows[-1:]
        best = min(enough, key=lambda row: row[1]["frechet"])
        first.append(best)
        after = [row for row in rows if row[0].scale > best[0].scale]
        more = after[0][0] if after else replace(best[0], scale=round(best[0].scale * 1.15, 2))
        stronger.append((more, best[1]))
    key = {id(row): (row[1]["share"] < share, row[1]["frechet"]) for row in first + stronger}
    first.sort(key=lambda row: key[id(row)])
    stronger.sort(key=lambda row: key[id(row)])
    chosen = [first[0][0], stronger[0][0]] + [row[0] for row in first[1:]] if first else []
    return list(dict.fromkeys(chosen)) or [Guidance(1.2), Guidance(1.5)]


def train_end(
    run: Run,
    base: nn.Module,
    training: dict,
    sha: str,
    guidance: Guidance,
    clock: Clock,
    seconds: float,
) -> dict:
    """Build `guidance` into the weights of `base` in
    `seconds`, the rate falling all the while; training.json."""
    began = clock.now()
    run.reset(base, guidance)
    probe = 10
    run.plan(LONGEST, 1, run.config.ema_decay)
    run.advance(probe)
    start = time.perf_counter()
    run.advance(probe)
    speed = probe / max(time.perf_counter() - start, 1e-9)
    total = run.steps + max(probe, int(speed * max(seconds - (clock.now() - began), 0)))
    ema = 1 - 1 / max(10.0, total / 12)
    run.config = replace(
        run.config, steps=total, decay_steps=total, guidance_scale=guidance.scale, ema_decay=ema
    )
    run.plan(total, total, ema)
    curve = []
    while run.steps < total:
        loss, error = run.advance(min(max(1, total // 10), total - run.steps))
        curve.append(
            dict(
                images=run.steps * run.config.batch_size,
                hours=round((clock.now() - began) / 3600, 4),
                error=round(error, 5),
            )
        )
    more = dict(
        guidance_interval=[guidance.start, guidance.stop],
        before=dict(sha256=sha, training=training),
    )
    return told(run, clock, loss, error, curve, clock.now() - began, "plain", **more)


@torch.no_grad()
def error_by_thirds(network: nn.Module, images: Tensor, labels: Tensor, n: int) -> list[float]:
    """Noise error on n fixed draws of test images, by thirds of t from clean to noisy."""
    generator = torch.Generator().manual_seed(0)
    device, sums, third = (
        next(network.parameters()).device,
        torch.zeros(3),
        (torch.arange(n) * 1000 // n) * 3 // 1000,
    )
    draws = Draws(
        torch.randint(len(images), (n,), generator=generator),
        torch.arange(n) * 1000 // n,
        torch.randn(n, 1, 32, 32, generator=generator),
        torch.zeros(n, dtype=torch.bool),
    )
    for rows in torch.arange(n).split(1000):
        part = Draws(
            draws.indices[rows], draws.timesteps[rows], draws.noise[rows], draws.hidden[rows]
        )
        sums.index_add_(
            0, third[rows], noise_errors(network, images.to(device), labels.to(device), part).cpu()
        )
    return (sums / torch.bincount(third, minlength=3)).tolist()


def choose(judged: dict[str, dict], share: float = 0.94) -> str:
    """The candidate nearest to real images of those with
    enough of the class asked for; else that with most of it."""
    enough = {k: v for k, v in judged.items() if v["share"] >= share}
    return (
        min(enough, key=lambda k: enough[k]["frechet"])
        if enough
        else max(judged, key=lambda k: judged[k]["share"])
    )


def judge_all(names: list[str], judge: Judge, clock: Clock, until: float) -> str:
    """Judge the saved candidates as they will be used, float16
    files in float32; copies the chosen to WORK/chosen."""
    judged = {}
    for name in names:
        if judged and clock.now() > until:
            break
        teacher = replace(
            load_fmnist_teacher(judge.device, clock.work / "candidates" / name), batch_size=1000
        )
        judged[name] = judge(teacher)
        judged[name]["copying"] = judge.copying(teacher, min(500, judge.n))
        clock.keep("candidates", judged)
        d = judged[name]
        clock.say(
            f"{name}: share {d['share']:.4f}, Frechet {d['frechet']:.4f}, "
            f"{d['ratio']:.2f} times that of training images, "
            f"mean pixel {d['mean_pixel']:.3f}, nearest "
            f"{d['copying']['samples']:.3f} (real {d['copying']['real']:.3f})"
        )
        chosen = choose(judged)
        shutil.copytree(
            clock.work / "candidates" / chosen, clock.work / "chosen", dirs_exist_ok=True
        )
        clock.keep("chosen", chosen)
    return chosen


def recipe(dry: bool, cuda: bool) -> TeacherConfig:
    """The base's settings; steps, decay and average follow from the clock."""
    precision = "bfloat16" if cuda else "float32"
    if dry:
        return TeacherConfig(
            widths=(8, 16),
            attention_size=16,
            head_dim=8,
            batch_size=8,
            steps=1,
            decay_steps=0,
            warmup_steps=5,
            precision=precision,
        )
    return TeacherConfig(
        batch_size=512,
        lr=4e-3,
        vector_lr=2e-3,
        warmup_steps=300,
        steps=1,
        decay_steps=0,
        precision=precision,
        seed=2,
    )


def data(dry: bool, split: str) -> tuple[Tensor, Tensor]:
    if dry:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(
            0, 256, (400, 1, 32, 32), dtype=torch.uint8, generator=generator
        ), torch.arange(400) % 10
    return load_fashion_mnist(split, dtype=torch.uint8, download=False)


def whole_run(clock: Clock, dry: bool, device: torch.device) -> str:
    """Base, scan, ends and judgement, by shares of the
    clock's seconds; the chosen candidate's name."""
    shares = dict(base=0.665, scan=0.735, ends=0.885, judge=0.97)
    until = {k: v * clock.seconds for k, v in shares.items()}
    cpu_images, cpu_labels = data(dry, "train")
    images, labels = cpu_images.to(device), cpu_labels.to(device)
    config = recipe(dry, device.type == "cuda")
    compiler = None
    if (device.type == "cuda" or dry) and Run.graphs:
        compiler = Compiler(config, clock)
    try:
        batch = choose_batch(config, images, labels, (8, 16) if dry else (256, 512, 1024), clock)
        clock.say(f"batch {config.batch_size} (by the trial: {batch})")
        run = Run(config, images, labels)
        run.plan(None, 0, config.ema_decay)
        run.capture()
        training = train_base(run, clock, until["base"], compiler, chunk=5 if dry else 50)
    finally:
        if compiler:
            compiler.stop()
    base = run.average
    folder = save(base, training, clock, "base")
    sha = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    judge = Judge(cpu_images, device, 40 if dry else 10_000)
    names, found = ["base"], []
    try:
        test_images, test_labels = data(dry, "test")
        n = 300 if dry else 12_000
        thirds = dict(
            test=error_by_thirds(base, test_images, test_labels, n),
            training=error_by_thirds(base, cpu_images, cpu_labels, n),
        )
        clock.keep("noise_error_by_thirds", thirds)
        clock.say(f"noise error by thirds of t: {thirds}")
        found = scan(base, judge, clock, until["scan"])
    except Exception:
        traceback.print_exc()
    try:
        names += train_ends(
            config, images, labels, base, training, sha, ends(found), clock, until["ends"]
        )
    except Exception:
        traceback.print_exc()
    return judge_all(names[1:] + names[:1], judge, clock, until["judge"])


def train_ends(
    config: TeacherConfig,
    images: Tensor,
    labels: Tensor,
    base: nn.Module,
    training: dict,
    sha: str,
    wanted: list[Guidance],
    clock: Clock,
    until: float,
    most: int = 4,
) -> list[str]:
    """Train and save the ends that there is time for; their names."""
    settings = replace(
        config,
        batch_size=config.batch_size // 2,
        lr=2e-3,
        vector_lr=1e-3,
        warmup_steps=20,
        precision="float32",
        guidance_scale=wanted[0].scale,
        ema_decay=0.99,
        seed=config.seed + 1,
    )
    run, names, wanted = Run(settings, images, labels, guided=True, start=base), [], wanted[:most]
    run.plan(None, 0, settings.ema_decay)
    run.capture()
    for i, guidance in enumerate(wanted):
        seconds = (until - clock.now()) / (len(wanted) - i)
        if names and seconds < 5:
            break
        told_of_end = train_end(run, base, training, sha, guidance, clock, seconds)
        clock.say(
            f"{guidance.name}: {told_of_end['steps_done']} "
            f"steps, error {told_of_end['noise_error']:.5f}"
        )
        save(run.average, told_of_end, clock, guidance.name)
        names.append(guidance.name)
    return names


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for candidates and figures")
    parser.add_argument(
        "--seconds", type=float, default=530, help="when to be done, from --began on"
    )
    parser.add_argument(
        "--began", type=float, help="the time (seconds since 1970) to count from; default: now"
    )
    parser.add_argument(
        "--dry", action="store_true", help="tiny networks, random data, a few steps"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-graphs", action="store_true", help="no CUDA graphs and no compiler")
    parser.add_argument(
        "--warm", metavar="CONFIG", help="only compile, for the process that trains"
    )
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if args.warm:
        config = TeacherConfig(**json.loads(args.warm))
        images, labels = data(True, "train")
        warm(config, images.to(device), labels.to(device))
        return 0
    clock = Clock(args.work, args.began or time.time(), args.seconds)
    clock.say(
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'}, "
        f"torch {torch.__version__}"
    )
    Run.graphs = not args.no_graphs
    try:
        chosen = whole_run(clock, args.dry, device)
    except Exception:
        traceback.print_exc()
        if args.no_graphs or (clock.work / "candidates" / "base" / WEIGHTS).is_file():
            return 1
        clock.say("once more, without graphs")
        given = [
            str(args.work),
            "--seconds",
            str(args.seconds),
            "--began",
            str(clock.began),
            "--device",
            args.device,
            "--no-graphs",
        ]
        os.execv(sys.executable, [sys.executable, __file__, *given, *["--dry"] * args.dry])
    clock.say(f"chosen: {chosen}; done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
