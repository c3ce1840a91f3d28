"""U-Net pipelines of images, tiny, and their relatives: Stable Diffusion, SDXL, PixArt ..."""

import diffusers
import numpy as np
import torch
import transformers
from diffusers import pipelines
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from PIL import Image

from tiny.base import tiny
from tiny.texts import (
    LENGTH,
    VOCABULARY,
    bert_text,
    bert_tokenizer,
    clip_pictures,
    clip_text,
    clip_tokenizer,
    clip_vision,
    t5_text,
    t5_tokenizer,
    xlm_roberta_tokenizer,
)

SIDE = 16  # pixels; 8 x 8 latents
SIZE = dict(height=SIDE, width=SIDE)
LARGER = dict(height=2 * SIDE, width=2 * SIDE)
LARGEST = dict(height=4 * SIDE, width=4 * SIDE)
SD_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
NO_CHECK = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def asks(**values):
    "What a user passes; a function among the values is called for its value."

    def call():
        return {key: value() if callable(value) else value for key, value in values.items()}

    return call


def asks_text(guidance_scale=3.0, **values):
    "A call with a prompt, a negative prompt and guidance."
    words = dict(prompt="a cat", negative_prompt="blurry", guidance_scale=guidance_scale)
    return asks(**words, **values)


def numbers(*shape):
    "Numbers between 0 and 1 that are the same every time."
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def picture(side=SIDE):
    return Image.fromarray((255 * numbers(side, side, 3)).astype(np.uint8))


def mask(side=SIDE):
    "White, which is painted anew, on the right half."
    half = np.zeros((side, side), np.uint8)
    half[:, side // 2 :] = 255
    return Image.fromarray(half)


def shrink(net, factor=0.3, layer="conv_out"):
    """Smaller last weights: a random network's answers then stay in the range of images."""
    with torch.no_grad():
        getattr(net, layer).weight.mul_(factor)
    return net


def vae(latents=4, blocks=2, **options):
    "An image encoder and decoder; `blocks - 1` times it halves the sides."
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16)[:blocks],
        latent_channels=latents,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        **options,
    )


def vq(**options):
    "The vector-quantized counterpart of `vae`."
    settings = dict(
        block_out_channels=(8, 16),
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return diffusers.VQModel(**{**settings, **options})


def plain_unet(channels=3, **options):
    "A U-Net without a text, for pictures of 8 x 8."
    settings = dict(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return shrink(diffusers.UNet2DModel(**{**settings, **options}))


BODY = dict(
    layers_per_block=1,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=2,
)


def unet(**options):
    "A U-Net with a text, for 8 x 8 latents of four channels."
    settings = dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return shrink(diffusers.UNet2DConditionModel(**{**BODY, **settings, **options}))


def pndm(**options):
    "Stable Diffusion 1's and 2's own scheduler."
    return diffusers.PNDMScheduler(
        **{**SD_BETAS, **dict(skip_prk_steps=True, steps_offset=1), **options}
    )


def leading(**options):
    "The settings of SDXL's own EulerDiscreteScheduler."
    return {**SD_BETAS, **dict(timestep_spacing="leading", steps_offset=1), **options}


def ddim(**options):
    settings = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return diffusers.DDIMScheduler(**{**SD_BETAS, **settings, **options})


# Unconditional pictures and classes


@tiny("unconditional", asks(), batches="batch_size")
def DDPMPipeline():
    return diffusers.DDPMPipeline(plain_unet(), diffusers.DDPMScheduler())


@tiny("unconditional", asks(), batches="batch_size")
def DDIMPipeline():
    return diffusers.DDIMPipeline(plain_unet(), diffusers.DDIMScheduler())


@tiny("unconditional", asks(), batches="batch_size")
def ConsistencyModelPipeline():
    return diffusers.ConsistencyModelPipeline(
        plain_unet(), diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    )


@tiny("dit", asks(class_labels=[1, 2], guidance_scale=3.0), batches="")
def DiTPipeline():
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        attention_bias=True,
        activation_fn="gelu-approximate",
    )
    return diffusers.DiTPipeline(net, vae(), diffusers.DDIMScheduler(clip_sample=False))


# Stable Diffusion 1 and 2


def stable_diffusion(kind, net=None, scheduler=None, **parts):
    "The pipeline of that class with Stable Diffusion's parts."
    own = dict(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=net or unet(),
        scheduler=scheduler or pndm(),
    )
    return getattr(diffusers, kind)(**{**own, **parts})


@tiny("stable_diffusion", asks_text(**SIZE))
def StableDiffusionPipeline():
    return stable_diffusion("StableDiffusionPipeline", **NO_CHECK)


@tiny("stable_diffusion", asks_text(image=picture, strength=0.8), begins="image")
def StableDiffusionImg2ImgPipeline():
    return stable_diffusion("StableDiffusionImg2ImgPipeline", **NO_CHECK)


@tiny("stable_diffusion", asks_text(image=picture, mask_image=mask, **SIZE), begins="image")
def StableDiffusionInpaintPipeline():
    net = unet(in_channels=9)
    return stable_diffusion("StableDiffusionInpaintPipeline", net, **NO_CHECK)


@tiny("stable_diffusion", asks_text(image=picture, image_guidance_scale=1.5))
def StableDiffusionInstructPix2PixPipeline():
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD_BETAS, steps_offset=1)
    net = unet(in_channels=8)
    return stable_diffusion("StableDiffusionInstructPix2PixPipeline", net, scheduler, **NO_CHECK)


@tiny("stable_diffusion", asks_text(image=picture, strength=0.8), begins="image")
def StableDiffusionDepth2ImgPipeline():
    config = transformers.DPTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=4,
        is_hybrid=False,
    )
    sides = dict(height=32, width=32)
    return stable_diffusion(
        "StableDiffusionDepth2ImgPipeline",
        unet(in_channels=5),
        depth_estimator=transformers.DPTForDepthEstimation(config),
        feature_extractor=transformers.DPTImageProcessorPil(size=sides),
    )


@tiny("stable_diffusion", asks(image=picture, guidance_scale=3.0, **SIZE))
def StableDiffusionImageVariationPipeline():
    return diffusers.StableDiffusionImageVariationPipeline(
        vae(), clip_vision(), unet(), pndm(), None, clip_pictures(), requires_safety_checker=False
    )


@tiny("stable_diffusion", asks_text(image=lambda: picture(8), noise_level=20), begins="image")
def StableDiffusionUpscalePipeline():
    betas = dict(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02)
    return stable_diffusion(
        "StableDiffusionUpscalePipeline",
        unet(in_channels=7, num_class_embeds=1000),
        ddim(**betas, prediction_type="v_prediction"),
        vae=vae(blocks=3),
        low_res_scheduler=diffusers.DDPMScheduler(**betas),
    )


@tiny("stable_diffusion", asks_text(image=picture), begins="image", batches="")
def StableDiffusionLatentUpscalePipeline():
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=5,
        layers_per_block=1,
        block_out_channels=(32, 32, 64, 64),
        cross_attention_dim=16,
        attention_head_dim=8,
        act_fn="gelu",
        norm_num_groups=None,
        conv_in_kernel=1,
        conv_out_kernel=1,
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        time_cond_proj_dim=16 + 128,
        resnet_time_scale_shift="scale_shift",
        only_cross_attention=False,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        mid_block_type=None,
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    )
    scheduler = diffusers.EulerDiscreteScheduler(**SD_BETAS, prediction_type="sample")
    return stable_diffusion("StableDiffusionLatentUpscalePipeline", shrink(net), scheduler)


def unclip():
    "The parts with which Stable Diffusion 2 continues from an image's embedding."
    return dict(
        net=unet(class_embed_type="projection", projection_class_embeddings_input_dim=32),
        scheduler=pndm(prediction_type="v_prediction"),
        image_normalizer=StableUnCLIPImageNormalizer(16),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )


def prior():
    "The network and the scheduler that make an image's embedding from a text's."
    net = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=LENGTH,
    )
    torch.nn.init.ones_(net.clip_std)
    scheduler = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
    )
    return net, scheduler


@tiny("stable_diffusion", asks_text(prior_num_inference_steps=2, **SIZE))
def StableUnCLIPPipeline():
    net, scheduler = prior()
    return stable_diffusion(
        "StableUnCLIPPipeline",
        **unclip(),
        prior=net,
        prior_scheduler=scheduler,
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=clip_text(projection=True),
    )


@tiny("stable_diffusion", asks_text(image=picture, **SIZE))
def StableUnCLIPImg2ImgPipeline():
    return stable_diffusion(
        "StableUnCLIPImg2ImgPipeline",
        **unclip(),
        image_encoder=clip_vision(),
        feature_extractor=clip_pictures(),
    )


def consistent(kind):
    net = unet(time_cond_proj_dim=8)
    scheduler = diffusers.LCMScheduler(**SD_BETAS, timestep_scaling=10.0)
    return stable_diffusion(kind, net, scheduler, **NO_CHECK)


@tiny("latent_consistency", asks(prompt="a cat", guidance_scale=3.0, **SIZE))
def LatentConsistencyModelPipeline():
    return consistent("LatentConsistencyModelPipeline")


@tiny("latent_consistency", asks(prompt="a cat", image=picture, strength=0.8), begins="image")
def LatentConsistencyModelImg2ImgPipeline():
    return consistent("LatentConsistencyModelImg2ImgPipeline")


# Stable Diffusion XL

TIMES = dict(addition_embed_type="text_time", addition_time_embed_dim=4)
XL = dict(cross_attention_dim=32, projection_class_embeddings_input_dim=6 * 4 + 16, **TIMES)
NO_MARK = dict(add_watermarker=False)


def stable_diffusion_xl(kind, net=None, scheduler=None, **parts):
    "The pipeline of that class with SDXL's parts."
    own = dict(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=net or unet(**XL),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**leading()),
    )
    return getattr(diffusers, kind)(**{**own, **parts})


@tiny("stable_diffusion_xl", asks_text(**SIZE))
def StableDiffusionXLPipeline():
    return stable_diffusion_xl("StableDiffusionXLPipeline", **NO_MARK)


@tiny("stable_diffusion_xl", asks_text(image=picture, strength=0.8), begins="image")
def StableDiffusionXLImg2ImgPipeline():
    # the refiner: one text encoder, and a score of beauty among the sizes
    return stable_diffusion_xl(
        "StableDiffusionXLImg2ImgPipeline",
        unet(projection_class_embeddings_input_dim=5 * 4 + 16, **TIMES),
        text_encoder=None,
        tokenizer=None,
        requires_aesthetics_score=True,
        **NO_MARK,
    )


@tiny("stable_diffusion_xl", asks_text(image=picture, mask_image=mask, **SIZE), begins="image")
def StableDiffusionXLInpaintPipeline():
    net = unet(in_channels=9, **XL)
    return stable_diffusion_xl("StableDiffusionXLInpaintPipeline", net, **NO_MARK)


@tiny("stable_diffusion_xl", asks_text(image=picture, image_guidance_scale=1.5, **SIZE))
def StableDiffusionXLInstructPix2PixPipeline():
    # CosXL Edit
    return stable_diffusion_xl(
        "StableDiffusionXLInstructPix2PixPipeline",
        unet(in_channels=8, **XL),
        diffusers.EDMEulerScheduler(
            sigma_min=0.002, sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction"
        ),
        is_cosxl_edit=True,
        **NO_MARK,
    )


# ControlNets and adapters

CONTROL = dict(conditioning_embedding_out_channels=(8, 16))  # halves the sides once, as the VAE


def controlnet(**options):
    return diffusers.ControlNetModel(**{**BODY, **CONTROL, **options})


def union(**options):
    "One ControlNet for six kinds of control."
    trans = dict(num_trans_channel=8, num_trans_head=2, num_proj_channel=8)
    return diffusers.ControlNetUnionModel(**{**BODY, **CONTROL, **trans, **XL, **options})


def unipc():
    return diffusers.UniPCMultistepScheduler(**SD_BETAS, steps_offset=1)


def controlled(kind, **parts):
    return stable_diffusion(kind, None, unipc(), controlnet=controlnet(), **NO_CHECK, **parts)


def controlled_xl(kind, net=None, **parts):
    net = net or controlnet(**XL)
    return stable_diffusion_xl(kind, controlnet=net, **NO_MARK, **parts)


DRAWN = dict(image=picture, control_image=picture, strength=0.8)
FILLED = dict(image=picture, mask_image=mask, control_image=picture)
MODE = dict(control_mode=0)


@tiny("controlnet", asks_text(image=picture))
def StableDiffusionControlNetPipeline():
    return controlled("StableDiffusionControlNetPipeline")


@tiny("controlnet", asks_text(**DRAWN), begins="image")
def StableDiffusionControlNetImg2ImgPipeline():
    return controlled("StableDiffusionControlNetImg2ImgPipeline")


@tiny("controlnet", asks_text(**FILLED), begins="image")
def StableDiffusionControlNetInpaintPipeline():
    return controlled("StableDiffusionControlNetInpaintPipeline")


@tiny("controlnet", asks_text(image=picture))
def StableDiffusionXLControlNetPipeline():
    return controlled_xl("StableDiffusionXLControlNetPipeline")


@tiny("controlnet", asks_text(**DRAWN), begins="image")
def StableDiffusionXLControlNetImg2ImgPipeline():
    return controlled_xl("StableDiffusionXLControlNetImg2ImgPipeline")


@tiny("controlnet", asks_text(**FILLED), begins="image")
def StableDiffusionXLControlNetInpaintPipeline():
    return controlled_xl("StableDiffusionXLControlNetInpaintPipeline")


@tiny("controlnet", asks_text(control_image=picture, **MODE))
def StableDiffusionXLControlNetUnionPipeline():
    return controlled_xl("StableDiffusionXLControlNetUnionPipeline", union())


@tiny("controlnet", asks_text(**DRAWN, **MODE), begins="image")
def StableDiffusionXLControlNetUnionImg2ImgPipeline():
    return controlled_xl("StableDiffusionXLControlNetUnionImg2ImgPipeline", union())


@tiny("controlnet", asks_text(**FILLED, **MODE), begins="image")
def StableDiffusionXLControlNetUnionInpaintPipeline():
    return controlled_xl("StableDiffusionXLControlNetUnionInpaintPipeline", union())


@tiny("t2i_adapter", asks_text(image=picture, **SIZE))
def StableDiffusionAdapterPipeline():
    net = unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    adapter = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    parts = dict(adapter=adapter, **NO_CHECK)
    return stable_diffusion("StableDiffusionAdapterPipeline", net, **parts)


@tiny("t2i_adapter", asks_text(image=picture, **SIZE))
def StableDiffusionXLAdapterPipeline():
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**leading())
    adapter = diffusers.T2IAdapter(
        channels=[8, 16, 16, 16],
        num_res_blocks=1,
        downscale_factor=4,
        adapter_type="full_adapter_xl",
    )
    return stable_diffusion_xl("StableDiffusionXLAdapterPipeline", None, scheduler, adapter=adapter)


# Perturbed attention guidance

PAG = dict(pag_scale=3.0)


@tiny("pag", asks_text(**PAG, **SIZE))
def StableDiffusionPAGPipeline():
    return stable_diffusion("StableDiffusionPAGPipeline", None, ddim(), **NO_CHECK)


@tiny("pag", asks_text(image=picture, strength=0.8, **PAG), begins="image")
def StableDiffusionPAGImg2ImgPipeline():
    return stable_diffusion("StableDiffusionPAGImg2ImgPipeline", None, ddim(), **NO_CHECK)


@tiny("pag", asks_text(image=picture, mask_image=mask, **PAG, **SIZE), begins="image")
def StableDiffusionPAGInpaintPipeline():
    return stable_diffusion("StableDiffusionPAGInpaintPipeline", None, ddim(), **NO_CHECK)


@tiny("pag", asks_text(image=picture, **PAG))
def StableDiffusionControlNetPAGPipeline():
    return controlled("StableDiffusionControlNetPAGPipeline")


@tiny("pag", asks_text(**FILLED, **PAG), begins="image")
def StableDiffusionControlNetPAGInpaintPipeline():
    return controlled("StableDiffusionControlNetPAGInpaintPipeline")


@tiny("pag", asks_text(**PAG, **SIZE))
def StableDiffusionXLPAGPipeline():
    return stable_diffusion_xl("StableDiffusionXLPAGPipeline", **NO_MARK)


@tiny("pag", asks_text(image=picture, strength=0.8, **PAG), begins="image")
def StableDiffusionXLPAGImg2ImgPipeline():
    return stable_diffusion_xl("StableDiffusionXLPAGImg2ImgPipeline", **NO_MARK)


@tiny("pag", asks_text(image=picture, mask_image=mask, **PAG, **SIZE), begins="image")
def StableDiffusionXLPAGInpaintPipeline():
    return stable_diffusion_xl("StableDiffusionXLPAGInpaintPipeline", **NO_MARK)


@tiny("pag", asks_text(image=picture, **PAG))
def StableDiffusionXLControlNetPAGPipeline():
    return controlled_xl("StableDiffusionXLControlNetPAGPipeline")


@tiny("pag", asks_text(**DRAWN, **PAG), begins="image")
def StableDiffusionXLControlNetPAGImg2ImgPipeline():
    return controlled_xl("StableDiffusionXLControlNetPAGImg2ImgPipeline")


# Kolors


class ChatTokens(transformers.T5Tokenizer):
    """In place of ChatGLM's tokenizer, which is made from a sentencepiece file only."""

    def __call__(self, *texts, **options):
        tokens = super().__call__(*texts, **options)
        seen = tokens["attention_mask"]
        tokens["position_ids"] = (seen.cumsum(1) - 1).clamp(min=0)
        return tokens


def kolors(kind):
    "`kind` is a class here: diffusers offers Kolors at its top only with sentencepiece installed."
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=VOCABULARY,
        hidden_size=16,
        ffn_hidden_size=24,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=LENGTH,
        add_qkv_bias=True,
        multi_query_attention=True,
        original_rope=True,
    )
    text = ChatGLMModel(config)
    for weight in text.parameters():  # which diffusers leaves as the memory was
        torch.nn.init.normal_(weight, std=0.1)
    projected = dict(encoder_hid_dim=16, encoder_hid_dim_type="text_proj")
    return kind(
        vae=vae(),
        text_encoder=text,
        tokenizer=t5_tokenizer(kind=ChatTokens, padding_side="left"),
        unet=unet(**{**XL, **projected, **dict(cross_attention_dim=16)}),
        scheduler=diffusers.EulerDiscreteScheduler(
            **leading(num_train_timesteps=1100, beta_end=0.014)
        ),
    )


SHORT = dict(max_sequence_length=LENGTH)


@tiny("kolors", asks_text(**SHORT, **SIZE))
def KolorsPipeline():
    return kolors(pipelines.kolors.KolorsPipeline)


@tiny("kolors", asks_text(image=picture, strength=0.8, **SHORT, **SIZE), begins="image")
def KolorsImg2ImgPipeline():
    return kolors(pipelines.kolors.KolorsImg2ImgPipeline)


@tiny("pag", asks_text(**PAG, **SHORT, **SIZE))
def KolorsPAGPipeline():
    return kolors(pipelines.pag.KolorsPAGPipeline)


# PixArt, Hunyuan-DiT, Sana, Stable Diffusion 3

FREE = dict(use_resolution_binning=False, **SIZE)
PLAIN = dict(clean_caption=False, **FREE)


def pixart(kind):
    net = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=16,
    )
    return getattr(diffusers, kind)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=vae(),
        transformer=shrink(net, layer="proj_out"),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


@tiny("pixart", asks_text(**PLAIN))
def PixArtAlphaPipeline():
    return pixart("PixArtAlphaPipeline")


@tiny("pixart", asks_text(**PLAIN))
def PixArtSigmaPipeline():
    return pixart("PixArtSigmaPipeline")


@tiny("pag", asks_text(**PAG, **PLAIN))
def PixArtSigmaPAGPipeline():
    return pixart("PixArtSigmaPAGPipeline")


HUNYUAN = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=4,
    patch_size=2,
    sample_size=8,
    hidden_size=16,
    cross_attention_dim=16,
    cross_attention_dim_t5=16,
    pooled_projection_dim=16,
)


def hunyuan_dit(kind, **parts):
    "Hunyuan-DiT 1.2, which is told no sizes."
    net = diffusers.HunyuanDiT2DModel(
        **HUNYUAN, num_layers=4, use_style_cond_and_image_meta_size=False
    )
    betas = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.018)
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=bert_text(),
        tokenizer=bert_tokenizer(77),
        transformer=shrink(net, layer="proj_out"),
        scheduler=diffusers.DDPMScheduler(
            **betas, clip_sample=False, steps_offset=1, prediction_type="v_prediction"
        ),
        text_encoder_2=t5_text(config=transformers.MT5Config),
        tokenizer_2=t5_tokenizer(256),
        **NO_CHECK,
        **parts,
    )


@tiny("hunyuan_dit", asks_text(**FREE))
def HunyuanDiTPipeline():
    return hunyuan_dit("HunyuanDiTPipeline")


@tiny("hunyuan_dit", asks_text(control_image=picture, **FREE))
def HunyuanDiTControlNetPipeline():
    net = diffusers.HunyuanDiT2DControlNetModel(
        **HUNYUAN, transformer_num_layers=4, use_style_cond_and_image_meta_size=False
    )
    return hunyuan_dit("HunyuanDiTControlNetPipeline", controlnet=net)


@tiny("pag", asks_text(**PAG, **FREE))
def HunyuanDiTPAGPipeline():
    return hunyuan_dit("HunyuanDiTPAGPipeline")


# DeepFloyd IF, which works on pixels

SIMPLE = dict(
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift",
)


def deepfloyd(kind, in_channels=3, **options):
    net = unet(
        **SIMPLE,
        sample_size=SIDE,
        in_channels=in_channels,
        out_channels=6,
        act_fn="gelu",
        cross_attention_norm="group_norm",
        cross_attention_dim=32,
        encoder_hid_dim=16,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        **options,
    )
    noises = dict(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    limits = dict(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5)
    larger = in_channels == 6
    return getattr(diffusers, kind)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        unet=net,
        scheduler=diffusers.DDPMScheduler(**noises, **limits),
        watermarker=None,
        **NO_CHECK,
        **(dict(image_noising_scheduler=diffusers.DDPMScheduler(**noises)) if larger else {}),
    )


def enlarging(kind):
    return deepfloyd(kind, 6, class_embed_type="timestep")


RAW = dict(clean_caption=False)
SMALL = dict(image=lambda: picture(SIDE // 2), noise_level=20)


@tiny("deepfloyd_if", asks_text(**RAW))
def IFPipeline():
    return deepfloyd("IFPipeline")


@tiny("deepfloyd_if", asks_text(image=picture, strength=0.8, **RAW), begins="image")
def IFImg2ImgPipeline():
    return deepfloyd("IFImg2ImgPipeline")


@tiny("deepfloyd_if", asks_text(image=picture, mask_image=mask, **RAW), begins="image")
def IFInpaintingPipeline():
    return deepfloyd("IFInpaintingPipeline")


@tiny("deepfloyd_if", asks_text(**SMALL, **RAW), begins="image")
def IFSuperResolutionPipeline():
    return enlarging("IFSuperResolutionPipeline")


@tiny("deepfloyd_if", asks_text(original_image=picture, **SMALL, **RAW), begins="image")
def IFImg2ImgSuperResolutionPipeline():
    return enlarging("IFImg2ImgSuperResolutionPipeline")


@tiny(
    "deepfloyd_if",
    asks_text(original_image=picture, mask_image=mask, **SMALL, **RAW),
    begins="image",
)
def IFInpaintingSuperResolutionPipeline():
    return enlarging("IFInpaintingSuperResolutionPipeline")


# Latent Diffusion


@tiny("latent_diffusion", asks(prompt="a cat", guidance_scale=3.0, **LARGEST), batches="")
def LDMTextToImagePipeline():
    config = LDMBertConfig(
        vocab_size=VOCABULARY,
        encoder_layers=1,
        encoder_ffn_dim=24,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=16,
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=vae(blocks=4),
        bert=LDMBertModel(config),
        tokenizer=bert_tokenizer(77),
        unet=unet(),
        scheduler=ddim(),
    )


@tiny("latent_diffusion", asks(image=lambda: picture(32)), begins="image", batches="")
def LDMSuperResolutionPipeline():
    return diffusers.LDMSuperResolutionPipeline(
        vqvae=vq(),
        unet=plain_unet(in_channels=6),
        scheduler=ddim(beta_start=0.0015, beta_end=0.0155),
    )


# Marigold: what an image shows, from noise


def marigold(kind, prediction, answers=1, **parts):
    net = unet(in_channels=4 * (1 + answers), out_channels=4 * answers)
    scheduler = ddim(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    settings = dict(prediction_type=prediction, default_processing_resolution=SIDE)
    return stable_diffusion(kind, net, scheduler, **settings, **parts)


@tiny("marigold", asks(image=picture), batches="")
def MarigoldDepthPipeline():
    return marigold("MarigoldDepthPipeline", "depth")


@tiny("marigold", asks(image=picture), batches="")
def MarigoldNormalsPipeline():
    return marigold("MarigoldNormalsPipeline", "normals")


@tiny("marigold", asks(image=picture), batches="")
def MarigoldIntrinsicsPipeline():
    names = ["albedo", "material"]
    spaces = {name: dict(prediction_space="srgb") for name in names}
    return marigold(
        "MarigoldIntrinsicsPipeline",
        "intrinsics",
        len(names),
        target_properties=dict(target_names=names, **spaces),
    )


# Kandinsky 2.1, 2.2 and 3


def movq():
    return vq(
        block_out_channels=(32, 32),
        latent_channels=4,
        norm_type="spatial",
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )


def embedding():
    "An image's embedding, as a prior's answer."
    return torch.from_numpy(numbers(1, 16))


EMBEDDED = dict(image_embeds=embedding, negative_image_embeds=lambda: torch.zeros(1, 16))


def kandinsky_unet(**options):
    return unet(**{**SIMPLE, **dict(out_channels=8, encoder_hid_dim=16), **options})


def kandinsky_prior(prefix=""):
    "The parts that make an image's embedding from a text's."
    net, scheduler = prior()
    parts = dict(
        prior=net,
        image_encoder=clip_vision(),
        text_encoder=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        scheduler=scheduler,
        image_processor=clip_pictures(),
    )
    return {prefix + name: part for name, part in parts.items()}


def kandinsky(kind, in_channels=4, **parts):
    config = MCLIPConfig(
        transformerDimSize=16,
        imageDimSize=16,
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    net = kandinsky_unet(
        in_channels=in_channels,
        encoder_hid_dim_type="text_image_proj",
        addition_embed_type="text_image",
    )
    return getattr(diffusers, kind)(
        text_encoder=MultilingualCLIP(config),
        tokenizer=xlm_roberta_tokenizer(77),
        unet=net,
        scheduler=ddim(beta_schedule="linear"),
        movq=movq(),
        **parts,
    )


def kandinsky_2_2(kind, in_channels=4, hint=False, **parts):
    net = kandinsky_unet(
        in_channels=in_channels,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image_hint" if hint else "image",
    )
    return getattr(diffusers, kind)(
        unet=net,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample_range=2.0,
            variance_type="learned_range",
        ),
        movq=movq(),
        **parts,
    )


def kandinsky_3(kind):
    net = diffusers.Kandinsky3UNet(
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=3,
        block_out_channels=(8, 16, 16, 16),
        cross_attention_dim=16,
        encoder_hid_dim=16,
    )
    return getattr(diffusers, kind)(
        tokenizer=t5_tokenizer(128),
        text_encoder=t5_text(),
        unet=shrink(net),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            clip_sample=False,
            thresholding=True,
            sample_max_value=3.0,
        ),
        movq=movq(),
    )


TEXT = dict(prompt="a cat", negative_prompt="blurry", guidance_scale=3.0)
BOTH = dict(prior_num_inference_steps=2, **TEXT)
REDRAWN = dict(image=picture, strength=0.8)
REPAINTED = dict(image=picture, mask_image=mask)


def hint():
    "A control image of eight times the latents' sides."
    return torch.from_numpy(numbers(1, 3, 64, 64))


HINT = dict(hint=hint, guidance_scale=3.0)


@tiny("kandinsky", asks(**TEXT))
def KandinskyPriorPipeline():
    return diffusers.KandinskyPriorPipeline(**kandinsky_prior())


@tiny("kandinsky", asks(**TEXT, **EMBEDDED, **SIZE))
def KandinskyPipeline():
    return kandinsky("KandinskyPipeline")


@tiny("kandinsky", asks(**TEXT, **EMBEDDED, **REDRAWN, **SIZE), begins="image")
def KandinskyImg2ImgPipeline():
    return kandinsky("KandinskyImg2ImgPipeline")


@tiny("kandinsky", asks(**TEXT, **EMBEDDED, **REPAINTED, **SIZE), begins="image")
def KandinskyInpaintPipeline():
    return kandinsky("KandinskyInpaintPipeline", in_channels=9)


@tiny("kandinsky", asks(**BOTH, **SIZE))
def KandinskyCombinedPipeline():
    return kandinsky("KandinskyCombinedPipeline", **kandinsky_prior("prior_"))


# with num_images_per_prompt=2 diffusers itself fails here
@tiny("kandinsky", asks(**BOTH, **REDRAWN, **SIZE), begins="image", batches="")
def KandinskyImg2ImgCombinedPipeline():
    return kandinsky("KandinskyImg2ImgCombinedPipeline", **kandinsky_prior("prior_"))


@tiny("kandinsky", asks(**BOTH, **REPAINTED, **SIZE), begins="image")
def KandinskyInpaintCombinedPipeline():
    parts = kandinsky_prior("prior_")
    return kandinsky("KandinskyInpaintCombinedPipeline", in_channels=9, **parts)


@tiny("kandinsky_2_2", asks(**TEXT))
def KandinskyV22PriorPipeline():
    return diffusers.KandinskyV22PriorPipeline(**kandinsky_prior())


@tiny("kandinsky_2_2", asks(**TEXT, **REDRAWN), begins="image")
def KandinskyV22PriorEmb2EmbPipeline():
    return diffusers.KandinskyV22PriorEmb2EmbPipeline(**kandinsky_prior())


@tiny("kandinsky_2_2", asks(guidance_scale=3.0, **EMBEDDED, **SIZE))
def KandinskyV22Pipeline():
    return kandinsky_2_2("KandinskyV22Pipeline")


@tiny("kandinsky_2_2", asks(guidance_scale=3.0, **EMBEDDED, **REDRAWN, **SIZE), begins="image")
def KandinskyV22Img2ImgPipeline():
    return kandinsky_2_2("KandinskyV22Img2ImgPipeline")


@tiny("kandinsky_2_2", asks(guidance_scale=3.0, **EMBEDDED, **REPAINTED, **SIZE), begins="image")
def KandinskyV22InpaintPipeline():
    return kandinsky_2_2("KandinskyV22InpaintPipeline", 9)


@tiny("kandinsky_2_2", asks(**HINT, **EMBEDDED, **SIZE))
def KandinskyV22ControlnetPipeline():
    return kandinsky_2_2("KandinskyV22ControlnetPipeline", 8, hint=True)


@tiny("kandinsky_2_2", asks(**HINT, **EMBEDDED, **REDRAWN, **SIZE), begins="image")
def KandinskyV22ControlnetImg2ImgPipeline():
    return kandinsky_2_2("KandinskyV22ControlnetImg2ImgPipeline", 8, hint=True)


@tiny("kandinsky_2_2", asks(**BOTH, **SIZE))
def KandinskyV22CombinedPipeline():
    return kandinsky_2_2("KandinskyV22CombinedPipeline", **kandinsky_prior("prior_"))


@tiny("kandinsky_2_2", asks(**BOTH, **REDRAWN, **SIZE), begins="image")
def KandinskyV22Img2ImgCombinedPipeline():
    return kandinsky_2_2("KandinskyV22Img2ImgCombinedPipeline", **kandinsky_prior("prior_"))


@tiny("kandinsky_2_2", asks(**BOTH, **REPAINTED, **SIZE), begins="image")
def KandinskyV22InpaintCombinedPipeline():
    return kandinsky_2_2("KandinskyV22InpaintCombinedPipeline", 9, **kandinsky_prior("prior_"))


@tiny("kandinsky_3", asks(**TEXT, **LARGEST))
def Kandinsky3Pipeline():
    return kandinsky_3("Kandinsky3Pipeline")


@tiny("kandinsky_3", asks(**TEXT, image=lambda: picture(64), strength=0.8), begins="image")
def Kandinsky3Img2ImgPipeline():
    return kandinsky_3("Kandinsky3Img2ImgPipeline")


# Stable Cascade


def cascade_net(in_channels, **options):
    return StableCascadeUNet(
        in_channels=in_channels,
        out_channels=in_channels,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=16,
        timestep_ratio_embedding_dim=16,
        **options,
    )


def cascade_prior(prefix=""):
    net = cascade_net(
        16, clip_text_in_channels=16, clip_image_in_channels=16, switch_level=(False,)
    )
    parts = dict(
        prior=net,
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text(projection=True),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        feature_extractor=clip_pictures(),
        image_encoder=clip_vision(),
    )
    return {prefix + name: part for name, part in parts.items()}


def cascade_decoder():
    net = cascade_net(
        4,
        patch_size=2,
        effnet_in_channels=16,
        pixel_mapper_in_channels=3,
        kernel_size=3,
        timestep_conditioning_type=("sca",),
    )
    return dict(
        decoder=net,
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text(projection=True),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=16),
    )


@tiny("stable_cascade", asks_text(height=128, width=128))
def StableCascadePriorPipeline():
    return diffusers.StableCascadePriorPipeline(**cascade_prior())


def effnet():
    "A small latent image, as the prior's answer; the decoder makes as many images as it gets."
    return torch.from_numpy(numbers(1, 16, 3, 3))


@tiny("stable_cascade", asks_text(image_embeddings=effnet), batches="")
def StableCascadeDecoderPipeline():
    return diffusers.StableCascadeDecoderPipeline(**cascade_decoder())


@tiny(
    "stable_cascade",
    asks(
        prompt="a cat",
        negative_prompt="blurry",
        prior_guidance_scale=3.0,
        prior_num_inference_steps=2,
        height=128,
        width=128,
    ),
)
def StableCascadeCombinedPipeline():
    parts = {**cascade_decoder(), **cascade_prior("prior_")}
    return diffusers.StableCascadeCombinedPipeline(**parts)
