"""The models of benchmarks/scale.py: published configurations, random weights, tiny copies of each.

The configurations are those of the `config.json` files that the models' repositories hold, as far
as they differ from what diffusers takes by default.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import diffusers
import torch


@dataclass(frozen=True)
class Model:
    """A published network and its pipeline; `tiny` and `tiny_call` replace parts for `--dry`."""

    title: str
    pipeline: str
    part: str  # what the pipeline calls its network
    network: str
    parameters: float  # as published, in billions
    config: dict[str, Any]
    tiny: dict[str, Any]
    scheduler: tuple[str, dict[str, Any]]
    call: dict[str, Any]
    tiny_call: dict[str, Any]
    embeds: Callable[[dict[str, Any]], dict[str, tuple[int, ...]]]
    tokens: int
    asked: int  # rows of the network that one evaluation takes: 2 with guidance
    batch: int
    budgets: tuple[int, ...] = (500, 1500)
    options: dict[str, Any] = field(default_factory=dict)  # of the pipeline

    @property
    def flow(self) -> bool:
        """Whether it is a flow, whose teacher takes more steps."""
        name, options = self.scheduler
        return name.startswith("FlowMatch") or options.get("use_flow_sigmas", False)

    @property
    def at_once(self) -> int:
        """Of `asked` those that go to the network in one call."""
        return 1 if self.pipeline == "WanPipeline" else self.asked

    def sizes(self, dry: bool) -> dict[str, Any]:
        return self.config | self.tiny if dry else self.config


def _negative(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same shapes for the prompt that guidance leads away from."""
    return shapes | {f"negative_{name}": shape for name, shape in shapes.items()}


SMALL = dict(height=64, width=64)
TINY_UNET = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=8)
SD_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)

SD15 = Model(
    title="Stable Diffusion 1.5",
    pipeline="StableDiffusionPipeline",
    part="unet",
    network="UNet2DConditionModel",
    parameters=0.860,
    config=dict(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768,
        attention_head_dim=8,
    ),
    tiny=TINY_UNET
    | dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    ),
    scheduler=("PNDMScheduler", SD_BETAS | dict(skip_prk_steps=True, set_alpha_to_one=False)),
    call=dict(height=512, width=512, guidance_scale=7.5),
    tiny_call=SMALL,
    embeds=lambda c: _negative(dict(prompt_embeds=(c["cross_attention_dim"],))),
    tokens=77,
    asked=2,
    batch=4,
    options=dict(requires_safety_checker=False),
)

SDXL = Model(
    title="SDXL",
    pipeline="StableDiffusionXLPipeline",
    part="unet",
    network="UNet2DConditionModel",
    parameters=2.567,
    config=dict(
        sample_size=128,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    tiny=TINY_UNET
    | dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        cross_attention_dim=16,
        attention_head_dim=(2, 2),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    ),
    scheduler=("EulerDiscreteScheduler", SD_BETAS | dict(timestep_spacing="leading")),
    call=dict(height=1024, width=1024, guidance_scale=5.0),
    tiny_call=SMALL,
    embeds=lambda c: _negative(
        dict(
            prompt_embeds=(c["cross_attention_dim"],),
            pooled_prompt_embeds=(
                c["projection_class_embeddings_input_dim"] - 6 * c["addition_time_embed_dim"],
            ),
        )
    ),
    tokens=77,
    asked=2,
    batch=4,
    options=dict(add_watermarker=False),
)

SD3 = Model(
    title="Stable Diffusion 3 medium",
    pipeline="StableDiffusion3Pipeline",
    part="transformer",
    network="SD3Transformer2DModel",
    parameters=2.03,
    config=dict(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    ),
    tiny=dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ),
    scheduler=("FlowMatchEulerDiscreteScheduler", dict(shift=3.0)),
    call=dict(height=1024, width=1024, guidance_scale=7.0),
    tiny_call=SMALL,
    embeds=lambda c: _negative(
        dict(
            prompt_embeds=(c["joint_attention_dim"],),
            pooled_prompt_embeds=(c["pooled_projection_dim"],),
        )
    ),
    tokens=77 + 256,
    asked=2,
    batch=1,  # diffusers does not repeat embeddings that are given to this pipeline
)

FLUX = Model(
    title="FLUX.1-dev",
    pipeline="FluxPipeline",
    part="transformer",
    network="FluxTransformer2DModel",
    parameters=11.9,
    config=dict(
        patch_size=1,
        in_channels=64,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
    ),
    tiny=dict(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ),
    scheduler=(
        "FlowMatchEulerDiscreteScheduler",
        dict(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
    ),
    call=dict(height=1024, width=1024, guidance_scale=3.5),
    tiny_call=SMALL,
    embeds=lambda c: dict(
        prompt_embeds=(c["joint_attention_dim"],),
        pooled_prompt_embeds=(c["pooled_projection_dim"],),
    ),
    tokens=512,
    asked=1,  # its guidance is an input of the network
    batch=1,
    budgets=(320,),  # larger ones are extrapolated
)

WAN = Model(
    title="Wan 2.1 1.3B",
    pipeline="WanPipeline",
    part="transformer",
    network="WanTransformer3DModel",
    parameters=1.42,
    config=dict(
        patch_size=(1, 2, 2),
        in_channels=16,
        out_channels=16,
        num_layers=30,
        attention_head_dim=128,
        num_attention_heads=12,
        ffn_dim=8960,
        freq_dim=256,
        text_dim=4096,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    ),
    tiny=dict(
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        ffn_dim=32,
        freq_dim=16,
        text_dim=16,
        rope_max_seq_len=32,
    ),
    scheduler=(
        "UniPCMultistepScheduler",
        dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ),
    call=dict(height=480, width=832, num_frames=17, guidance_scale=5.0),
    tiny_call=SMALL | dict(num_frames=5),
    embeds=lambda c: _negative(dict(prompt_embeds=(c["text_dim"],))),
    tokens=512,
    asked=2,
    batch=1,
)

MODELS = dict(sd15=SD15, sdxl=SDXL, sd3=SD3, flux=FLUX, wan=WAN)


def build_network(model: Model, dry: bool, device: torch.device | str, dtype: torch.dtype) -> Any:
    """The network with random weights, made where it stays and in the type that it keeps."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            net = getattr(diffusers, model.network)(**model.sizes(dry))
    finally:
        torch.set_default_dtype(before)
    kept = getattr(net, "_keep_in_fp32_modules", None) or ()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if any(part in kept for part in name.split(".")):
                weight.data = weight.data.float()  # as in a network that is loaded
        last = getattr(net, "conv_out", None) or net.proj_out
        if not last.weight.is_meta:
            last.weight.mul_(0.3)  # answers stay in the range of images
    return net.eval().requires_grad_(False)


def build_pipeline(model: Model, net: Any) -> Any:
    """The pipeline around a network: no text encoders, no decoder."""
    kind = getattr(diffusers, model.pipeline)
    name, options = model.scheduler
    parts = {model.part: net, "scheduler": getattr(diffusers, name)(**options)}
    for part, parameter in inspect.signature(kind.__init__).parameters.items():
        if part != "self" and parameter.default is inspect.Parameter.empty:
            parts.setdefault(part, None)
    pipe = kind(**parts, **model.options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_of(model: Model, dry: bool, device: torch.device | str, dtype: torch.dtype) -> dict:
    """What the pipeline is called with: embeddings instead of a prompt."""
    tokens = 4 if dry else model.tokens
    generator = torch.Generator().manual_seed(0)
    found = model.call | model.tiny_call if dry else dict(model.call)
    for name, shape in model.embeds(model.sizes(dry)).items():
        full = (1, *shape) if "pooled" in name else (1, tokens, *shape)
        found[name] = torch.randn(full, generator=generator).to(device, dtype)
    return found
