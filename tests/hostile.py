"""Stand-ins for pipelines that a solver cannot be learned for, or that only look so."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import copy

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

PLAIN = dict(clip_sample=False, set_alpha_to_one=False)


class Net(torch.nn.Module):
    """The best answer to normal noise around one picture, or nearly."""

    def __init__(self):
        super().__init__()
        self.picture = torch.nn.Parameter(torch.linspace(-1, 1, 48).reshape(3, 4, 4), False)

    def forward(self, x, t):
        share = torch.as_tensor(t, dtype=x.dtype) / 1000
        return x * (0.5 + 0.5 * share) + (1 - share) * self.picture.to(x.dtype)


class Odd(DiffusionPipeline):
    """The loop that all pipelines have; each of the kinds below does one thing otherwise."""

    def __init__(self, scheduler, net):
        super().__init__()
        self.register_modules(scheduler=scheduler, net=net)

    def begin(self, generator, n=1):
        several = generator if isinstance(generator, list) else [generator] * n
        x = torch.cat([torch.randn(1, 3, 4, 4, generator=one) for one in several])
        return x * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def times(self):
        return self.scheduler.timesteps

    def answer(self, x, t, k):
        return self.net(x, t)

    def step(self, out, t, x, k):
        return self.scheduler.step(out, t, x).prev_sample

    def loop(self, x):
        scaled = getattr(self.scheduler, "scale_model_input", lambda x, t: x)
        for k, t in enumerate(self.times()):
            x = self.step(self.answer(scaled(x, t), t, k), t, x, k)
        return x

    @torch.no_grad()
    def __call__(
        self,
        scale=1.0,
        size=4,
        strength=1.0,
        num_inference_steps=50,
        num_images_per_prompt=1,
        generator=None,
    ):
        self.scheduler.set_timesteps(num_inference_steps)
        return self.loop(self.begin(generator, num_images_per_prompt))


def odd(kind=Odd, scheduler=None, net=None):
    scheduler = DDIMScheduler(**PLAIN) if scheduler is None else scheduler
    return kind(scheduler, net or Net())


# --- its loop


class WithoutSteps(Odd):
    def __call__(self, generator=None):
        return self.begin(generator)


class EndsAtOnce(Odd):
    def loop(self, x):
        return x


class EndsEarly(Odd):
    def times(self):
        return self.scheduler.timesteps[:3]


class RunsTwice(Odd):
    def loop(self, x):
        return super().loop(super().loop(x))


class ListsTimes(Odd):
    def times(self):
        return list(self.scheduler.timesteps)


class CopiesTimes(Odd):
    def times(self):
        return self.scheduler.timesteps.tolist()


class Swallows(Odd):
    kind = Exception

    def step(self, out, t, x, k):
        try:
            return super().step(out, t, x, k)
        except self.kind:
            return x


class SwallowsAll(Swallows):
    kind = BaseException


class Masks(Odd):
    def step(self, out, t, x, k):
        x = super().step(out, t, x, k)
        x[..., :2] = 0.0
        return x


class Copies(Odd):
    def loop(self, x):
        self.second = copy.deepcopy(self.scheduler)
        return super().loop(x)


class Reshapes(Odd):
    def step(self, out, t, x, k):
        if k == 1:
            out, x = out.reshape(1, 48), x.reshape(1, 48)
        return super().step(out, t, x, k).reshape(1, 3, 4, 4)


class AnotherShape(Odd):
    def step(self, out, t, x, k):
        if k == 1:
            out, x = out[..., :2], x[..., :2]
        return super().step(out, t, x, k)


class Grows(Odd):
    def step(self, out, t, x, k):
        x = super().step(out, t, x, k)
        return torch.cat([x, x]) if k == 1 else x


class NoTensor(Odd):
    def step(self, out, t, x, k):
        return torch.tensor(super().step(out, t, x.tolist(), k))


class Nothing(Odd):
    def step(self, out, t, x, k):
        super().step(out, t, None, k)
        return x


class WholeNumbers(Odd):
    def begin(self, generator, n=1):
        return (10 * super().begin(generator, n)).long()


class StepsOtherwise(Odd):
    def step(self, out, t, x, k):
        return self.scheduler.step(answer=out, when=t, where=x).prev_sample


# --- its answers


class Momentum(Odd):
    def answer(self, x, t, k):
        now = super().answer(x, t, k)
        self.before = now + 0.5 * getattr(self, "before", 0)
        return self.before


class Caches(Odd):
    def answer(self, x, t, k):
        if k % 2 == 0:
            self.kept = super().answer(x, t, k)
        return self.kept


class ByNumber(Odd):
    def answer(self, x, t, k):
        strong = 3.0 if k < self.scheduler.num_inference_steps // 2 else 1.0
        return strong * super().answer(x, t, k)


class Draws(Odd):
    def answer(self, x, t, k):
        return super().answer(x, t, k) + torch.randn_like(x)


class Answers(Odd):
    """`made` of the right answer is what its network says."""

    made = staticmethod(lambda out: out)

    def answer(self, x, t, k):
        return type(self).made(super().answer(x, t, k))


def saying(made):
    return type("Answers", (Answers,), {"made": staticmethod(made)})


def fails(out):
    raise RuntimeError("expected mat1 and mat2 to have the same dtype")


# --- its schedulers


class Bare(Odd):
    def __init__(self, net):
        DiffusionPipeline.__init__(self)
        self.register_modules(net=net)


class Several(Odd):
    def __init__(self, prior, decoder):
        DiffusionPipeline.__init__(self)
        self.register_modules(prior=prior, decoder=decoder)


class Combined(Odd):
    def __init__(self, scheduler, net):
        super().__init__(scheduler, net)
        self.prior_pipe = odd()


class OwnStepping(DDIMScheduler):
    """A class that diffusers does not have, and whose steps lead where no equation does."""

    def step(self, model_output, timestep, sample, **given):
        found = super().step(model_output, timestep, sample, **given)
        found.prev_sample = found.prev_sample.flip(-1)
        return found


class NeedsMore(DDIMScheduler):
    def step(self, model_output, timestep, sample, picture, **given):
        return super().step(model_output, timestep, sample, **given)


def changed(scheduler, **config):
    "A scheduler whose config was edited."
    scheduler.register_to_config(**config)
    return scheduler


def flow():
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


class FlowNet(Net):
    def forward(self, x, t):
        return x - self.picture.to(x.dtype) - 0.1 * torch.as_tensor(t, dtype=x.dtype) / 1000
