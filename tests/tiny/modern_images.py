"""Tiny text-to-image pipelines with a transformer, and their editing and control variants."""

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from tiny.base import tiny

SIZE = dict(height=16, width=16)
GUIDED = dict(prompt="a cat", negative_prompt="a dog", guidance_scale=3.0, **SIZE)
SHORT = dict(max_sequence_length=16)
LONG = dict(max_sequence_length=512)  # a template stands around the words; each letter counts
HALF = dict(strength=0.5)
PAG = dict(pag_scale=0.7)
FLUX_SHIFTS = dict(
    shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=4096
)
LETTERS = [chr(code) for code in range(33, 127)]
QWEN_WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
QWEN_WORDS += ["<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def picture(size=16, shade=0):
    """A picture of two slopes, one across and one down."""
    across = Image.linear_gradient("L").resize((size, size))
    return Image.merge("RGB", [across, across.rotate(90), Image.new("L", (size, size), shade)])


def mask(size=16):
    """White in the left half, where the picture is painted anew."""
    white = Image.new("L", (size, size), 0)
    white.paste(255, (0, 0, size // 2, size))
    return white


def flow(**options):
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **options)


def settle(net, seed=0):
    """Weights left empty, or at zero until training, become small random ones."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            empty = name.endswith(("pad_token", "gate_up_proj", "down_proj"))
            if empty or (weight.ndim > 1 and not weight.any()):
                weight.normal_(0, 0.1, generator=random)
    return net


def sharp(layer):
    """Of the channels that end an encoder the second half, the log of a variance, is made small.

    Some pipelines draw from this distribution without the generator they were given.
    """
    half = layer.weight.shape[0] // 2
    with torch.no_grad():
        layer.weight[half:] = 0
        layer.bias[half:] = -30


def kl_vae(latents=4, blocks=2, **options):
    options = dict(scaling_factor=0.3611, shift_factor=0.1159) | options
    widths = (8,) + (16,) * (blocks - 1) if blocks < 6 else (4,) * blocks
    vae = diffusers.AutoencoderKL(
        block_out_channels=widths,
        latent_channels=latents,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )
    sharp(vae.encoder.conv_out)
    return vae


def clip_text(projection=False, length=16):
    config = transformers.CLIPTextConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    if projection:
        return transformers.CLIPTextModelWithProjection(config)
    return transformers.CLIPTextModel(config)


def clip_tokenizer():
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def t5_text(kind="T5", **options):
    sizes = dict(vocab_size=300, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    sizes |= dict(pad_token_id=0, eos_token_id=1)
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    return getattr(transformers, f"{kind}EncoderModel")(config)


def t5_tokenizer(length=16):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def qwen_tokenizer(words=QWEN_WORDS, length=1024, **options):
    vocabulary = {word: i for i, word in enumerate([*words, *sorted(ByteLevel.alphabet())])}
    return transformers.Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        model_max_length=length,
        chat_template=CHAT,
        extra_special_tokens=list(words[1:]),
        **options,
    )


def gemma_tokenizer(length=32):
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def causal_sizes(layers=2, **options):
    """What the configurations of Llama, Qwen 3, Gemma, GLM, ... have in common."""
    return (
        dict(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
        | options
    )


def three_axes():
    return dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2])


def vision_words():
    """The numbers of the words that stand for a picture, as qwen_tokenizer counts them."""
    return dict(vision_start_token_id=3, vision_end_token_id=4, image_token_id=5, video_token_id=6)


def qwen25_vl():
    eyes = dict(depth=2, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16)
    eyes |= dict(fullatt_block_indexes=[1], patch_size=14, window_size=56)
    config = transformers.Qwen2_5_VLConfig(
        text_config=causal_sizes(rope_parameters=three_axes()),
        vision_config=eyes,
        **vision_words(),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen25_processor():
    views = dict(min_pixels=28 * 28, max_pixels=56 * 56)
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**views),
        tokenizer=qwen_tokenizer(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )


def qwen3_vl(kind="Qwen3VLForConditionalGeneration", layers=3):
    eyes = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16)
    eyes |= dict(patch_size=16, num_position_embeddings=16, deepstack_visual_indexes=[0])
    config = transformers.Qwen3VLConfig(
        text_config=causal_sizes(layers, rope_parameters=three_axes()),
        vision_config=eyes,
        **vision_words(),
    )
    return getattr(transformers, kind)(config)


def qwen3_processor():
    views = dict(patch_size=16, size=dict(shortest_edge=32 * 32, longest_edge=64 * 64))
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**views),
        tokenizer=qwen_tokenizer(),
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=CHAT,
    )


# Stable Diffusion 3


def sd3_sizes(**options):
    return (
        dict(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=16,
        )
        | options
    )


def sd3_parts(latents=4, **more):
    sizes = sd3_sizes(qk_norm="rms_norm", in_channels=latents, out_channels=latents)
    return (
        dict(
            transformer=settle(diffusers.SD3Transformer2DModel(**sizes)),
            scheduler=flow(shift=3.0),
            vae=kl_vae(latents),
            text_encoder=clip_text(True),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_text(True),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5_text(d_model=32),
            tokenizer_3=t5_tokenizer(),
        )
        | more
    )


def sd3_control(**options):
    return settle(diffusers.SD3ControlNetModel(**sd3_sizes(num_layers=1, **options)))


@tiny("sd3", lambda: GUIDED | SHORT)
def StableDiffusion3Pipeline():
    return diffusers.StableDiffusion3Pipeline(**sd3_parts())


@tiny("sd3", lambda: GUIDED | SHORT | HALF | dict(image=picture()), begins="image")
def StableDiffusion3Img2ImgPipeline():
    return diffusers.StableDiffusion3Img2ImgPipeline(**sd3_parts())


@tiny(
    "sd3",
    lambda: GUIDED | SHORT | HALF | dict(image=picture(), mask_image=mask()),
    begins="image",
)
def StableDiffusion3InpaintPipeline():
    return diffusers.StableDiffusion3InpaintPipeline(**sd3_parts(latents=16))


@tiny("sd3", lambda: GUIDED | SHORT | dict(control_image=picture()))
def StableDiffusion3ControlNetPipeline():
    return diffusers.StableDiffusion3ControlNetPipeline(**sd3_parts(controlnet=sd3_control()))


@tiny("sd3", lambda: GUIDED | SHORT | dict(control_image=picture(), control_mask=mask()))
def StableDiffusion3ControlNetInpaintingPipeline():
    control = sd3_control(extra_conditioning_channels=1)
    return diffusers.StableDiffusion3ControlNetInpaintingPipeline(**sd3_parts(controlnet=control))


@tiny("sd3", lambda: GUIDED | SHORT | PAG)
def StableDiffusion3PAGPipeline():
    return diffusers.StableDiffusion3PAGPipeline(**sd3_parts())


@tiny("sd3", lambda: GUIDED | SHORT | PAG | HALF | dict(image=picture()), begins="image")
def StableDiffusion3PAGImg2ImgPipeline():
    return diffusers.StableDiffusion3PAGImg2ImgPipeline(**sd3_parts())


# Flux 1


def flux_sizes(**options):
    return (
        dict(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        )
        | options
    )


def flux_parts(**more):
    channels = {k: more.pop(k) for k in ("in_channels", "out_channels") if k in more}
    return (
        dict(
            transformer=settle(diffusers.FluxTransformer2DModel(**flux_sizes(**channels))),
            scheduler=flow(**FLUX_SHIFTS),
            vae=kl_vae(),
            text_encoder=clip_text(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5_text(),
            tokenizer_2=t5_tokenizer(),
        )
        | more
    )


def flux_call(**more):
    return dict(prompt="a cat", guidance_scale=3.5) | SIZE | SHORT | more


def flux_control():
    return settle(diffusers.FluxControlNetModel(**flux_sizes()))


@tiny("flux", lambda: flux_call())
def FluxPipeline():
    return diffusers.FluxPipeline(**flux_parts())


@tiny("flux", lambda: flux_call(image=picture(), **HALF), begins="image")
def FluxImg2ImgPipeline():
    return diffusers.FluxImg2ImgPipeline(**flux_parts())


@tiny("flux", lambda: flux_call(image=picture(), mask_image=mask(), **HALF), begins="image")
def FluxInpaintPipeline():
    return diffusers.FluxInpaintPipeline(**flux_parts())


@tiny("flux", lambda: flux_call(control_image=picture()))
def FluxControlPipeline():
    return diffusers.FluxControlPipeline(**flux_parts(in_channels=32, out_channels=16))


@tiny(
    "flux",
    lambda: flux_call(image=picture(), control_image=picture(shade=90), **HALF),
    begins="image",
)
def FluxControlImg2ImgPipeline():
    return diffusers.FluxControlImg2ImgPipeline(**flux_parts(in_channels=32, out_channels=16))


@tiny(
    "flux",
    lambda: flux_call(image=picture(), mask_image=mask(), control_image=picture(shade=90), **HALF),
    begins="image",
)
def FluxControlInpaintPipeline():
    return diffusers.FluxControlInpaintPipeline(**flux_parts(in_channels=32, out_channels=16))


@tiny("flux", lambda: flux_call(control_image=picture()))
def FluxControlNetPipeline():
    return diffusers.FluxControlNetPipeline(**flux_parts(controlnet=flux_control()))


@tiny(
    "flux",
    lambda: flux_call(image=picture(), control_image=picture(shade=90), **HALF),
    begins="image",
)
def FluxControlNetImg2ImgPipeline():
    return diffusers.FluxControlNetImg2ImgPipeline(**flux_parts(controlnet=flux_control()))


@tiny(
    "flux",
    lambda: flux_call(image=picture(), mask_image=mask(), control_image=picture(shade=90), **HALF),
    begins="image",
)
def FluxControlNetInpaintPipeline():
    return diffusers.FluxControlNetInpaintPipeline(**flux_parts(controlnet=flux_control()))


@tiny("flux", lambda: flux_call(image=picture(), mask_image=mask()))
def FluxFillPipeline():
    # besides the state: the masked picture, and the mask with one channel for each pixel
    return diffusers.FluxFillPipeline(**flux_parts(in_channels=48, out_channels=16))


@tiny("flux", lambda: flux_call(image=picture(), max_area=256, _auto_resize=False))
def FluxKontextPipeline():
    return diffusers.FluxKontextPipeline(**flux_parts())


@tiny(
    "flux",
    lambda: flux_call(image=picture(), mask_image=mask(), max_area=256, _auto_resize=False, **HALF),
    begins="image",
)
def FluxKontextInpaintPipeline():
    return diffusers.FluxKontextInpaintPipeline(**flux_parts())


# Chroma


def chroma_parts():
    net = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return dict(
        transformer=settle(net),
        scheduler=flow(**FLUX_SHIFTS),
        vae=kl_vae(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )


@tiny("chroma", lambda: GUIDED | SHORT)
def ChromaPipeline():
    return diffusers.ChromaPipeline(**chroma_parts())


@tiny("chroma", lambda: GUIDED | SHORT | HALF | dict(image=picture()), begins="image")
def ChromaImg2ImgPipeline():
    return diffusers.ChromaImg2ImgPipeline(**chroma_parts())


@tiny(
    "chroma",
    lambda: GUIDED | SHORT | HALF | dict(image=picture(), mask_image=mask()),
    begins="image",
)
def ChromaInpaintPipeline():
    parts = chroma_parts()
    # the pipeline asks for this entry, which the network's class does not declare
    parts["transformer"].register_to_config(guidance_embeds=False)
    return diffusers.ChromaInpaintPipeline(**parts)


# Qwen-Image

QWEN_SHIFTS = dict(
    shift=1.0,
    use_dynamic_shifting=True,
    base_shift=0.5,
    max_shift=0.9,
    max_image_seq_len=8192,
    shift_terminal=0.02,
)


def qwen_vae(halvings=1, **options):
    """Each halving of the sides is one entry of temperal_downsample."""
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4 if halvings == 1 else 2,
        z_dim=8,
        dim_mult=[1] * (halvings + 1),
        num_res_blocks=0 if halvings > 1 else 1,
        temperal_downsample=[False] * halvings,
        latents_mean=[0.1, -0.2, 0.3, 0.0] * 2,
        latents_std=[1.0, 1.5, 0.8, 1.2] * 2,
        **options,
    )
    sharp(vae.quant_conv)
    return vae


def qwen_sizes(**options):
    return (
        dict(
            patch_size=2,
            in_channels=32,
            out_channels=8,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        )
        | options
    )


def qwen_parts(halvings=1, net=None, **more):
    network = diffusers.QwenImageTransformer2DModel(**qwen_sizes(**net or {}))
    return (
        dict(
            transformer=settle(network),
            scheduler=flow(**QWEN_SHIFTS),
            vae=qwen_vae(halvings),
            text_encoder=qwen25_vl(),
            tokenizer=qwen_tokenizer(),
        )
        | more
    )


def qwen_edit_parts(**more):
    # edited pictures are brought to a million pixels, so the autoencoder halves five times
    return qwen_parts(halvings=5, processor=qwen25_processor(), **more)


def qwen_call(**more):
    guided = dict(prompt="a cat", negative_prompt="a dog", true_cfg_scale=3.0)
    return guided | SIZE | LONG | more


def qwen_edit_call(**more):
    return qwen_call(height=128, width=128, image=picture(32), **more)


def qwen_control(**options):
    return settle(diffusers.QwenImageControlNetModel(**qwen_sizes(num_layers=1, **options)))


@tiny("qwenimage", lambda: qwen_call())
def QwenImagePipeline():
    return diffusers.QwenImagePipeline(**qwen_parts())


@tiny("qwenimage", lambda: qwen_call(image=picture(), **HALF), begins="image")
def QwenImageImg2ImgPipeline():
    return diffusers.QwenImageImg2ImgPipeline(**qwen_parts())


@tiny(
    "qwenimage",
    lambda: qwen_call(image=picture(), mask_image=mask(), **HALF),
    begins="image",
)
def QwenImageInpaintPipeline():
    return diffusers.QwenImageInpaintPipeline(**qwen_parts())


@tiny("qwenimage", lambda: qwen_call(control_image=picture()))
def QwenImageControlNetPipeline():
    return diffusers.QwenImageControlNetPipeline(**qwen_parts(controlnet=qwen_control()))


@tiny("qwenimage", lambda: qwen_call(control_image=picture(), control_mask=mask()))
def QwenImageControlNetInpaintPipeline():
    control = qwen_control(extra_condition_channels=4)
    return diffusers.QwenImageControlNetInpaintPipeline(**qwen_parts(controlnet=control))


@tiny("qwenimage", lambda: qwen_edit_call())
def QwenImageEditPipeline():
    return diffusers.QwenImageEditPipeline(**qwen_edit_parts())


@tiny("qwenimage", lambda: qwen_edit_call())
def QwenImageEditPlusPipeline():
    return diffusers.QwenImageEditPlusPipeline(**qwen_edit_parts())


@tiny("qwenimage", lambda: qwen_edit_call(mask_image=mask(32), **HALF), begins="image")
def QwenImageEditInpaintPipeline():
    return diffusers.QwenImageEditInpaintPipeline(**qwen_edit_parts())


def layered_call():
    call = qwen_call(image=picture(32).convert("RGBA"), layers=2, resolution=640)
    return {key: value for key, value in call.items() if key not in SIZE}


@tiny("qwenimage", layered_call)
def QwenImageLayeredPipeline():
    parts = qwen_edit_parts(net=dict(use_layer3d_rope=True, use_additional_t_cond=True))
    parts["vae"] = qwen_vae(5, input_channels=4)
    return diffusers.QwenImageLayeredPipeline(**parts)


# Z-Image


def qwen3(kind="Qwen3Model", **options):
    config = transformers.Qwen3Config(**causal_sizes(**options))
    return getattr(transformers, kind)(config)


def zimage_parts(siglip_width=None, **more):
    net = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        siglip_feat_dim=siglip_width,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 32, 32],
    )
    return (
        dict(
            transformer=settle(net),
            scheduler=flow(shift=3.0),
            vae=kl_vae(),
            text_encoder=qwen3(),
            tokenizer=qwen_tokenizer(),
        )
        | more
    )


def zimage_control(channels):
    net = diffusers.ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=channels,
        add_control_noise_refiner="control_noise_refiner",
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return settle(net)


@tiny("zimage", lambda: GUIDED | SHORT)
def ZImagePipeline():
    return diffusers.ZImagePipeline(**zimage_parts())


@tiny("zimage", lambda: GUIDED | SHORT | HALF | dict(image=picture()), begins="image")
def ZImageImg2ImgPipeline():
    return diffusers.ZImageImg2ImgPipeline(**zimage_parts())


@tiny(
    "zimage",
    lambda: GUIDED | SHORT | HALF | dict(image=picture(), mask_image=mask()),
    begins="image",
)
def ZImageInpaintPipeline():
    return diffusers.ZImageInpaintPipeline(**zimage_parts())


@tiny("zimage", lambda: GUIDED | SHORT | dict(control_image=picture()))
def ZImageControlNetPipeline():
    return diffusers.ZImageControlNetPipeline(**zimage_parts(controlnet=zimage_control(4)))


@tiny(
    "zimage",
    lambda: (
        GUIDED | SHORT | dict(image=picture(), mask_image=mask(), control_image=picture(shade=90))
    ),
    batches="",  # it has one mask, whatever is asked for
)
def ZImageControlNetInpaintPipeline():
    # the control picture, the mask, and the masked picture
    control = zimage_control(4 + 1 + 4)
    return diffusers.ZImageControlNetInpaintPipeline(**zimage_parts(controlnet=control))


# with pictures to look at, this pipeline asks for a bfloat16 autoencoder; so only words here
@tiny("zimage", lambda: GUIDED | SHORT)
def ZImageOmniPipeline():
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    sizes |= dict(num_attention_heads=2, patch_size=4, num_patches=16)
    eyes = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes))
    views = transformers.Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
    parts = zimage_parts(siglip_width=16, siglip=eyes, siglip_processor=views)
    return diffusers.ZImageOmniPipeline(**parts)


# Sana


def dc_vae():
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


def gemma2():
    sizes = causal_sizes(eos_token_id=1, bos_token_id=2, query_pre_attn_scalar=8)
    return transformers.Gemma2Model(transformers.Gemma2Config(**sizes))


def sana_sizes(**options):
    return (
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            patch_size=1,
        )
        | options
    )


def sana_parts(net=None, **more):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        beta_start=0.0001,
        beta_end=0.02,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
    )
    return (
        dict(
            transformer=settle(diffusers.SanaTransformer2DModel(**sana_sizes(**net or {}))),
            scheduler=scheduler,
            vae=dc_vae(),
            text_encoder=gemma2(),
            tokenizer=gemma_tokenizer(),
        )
        | more
    )


SANA_CALL = dict(complex_human_instruction=None, use_resolution_binning=False)
SANA_CALL |= dict(max_sequence_length=32, height=32, width=32)


@tiny("sana", lambda: GUIDED | SANA_CALL)
def SanaPipeline():
    return diffusers.SanaPipeline(**sana_parts())


@tiny("sana", lambda: GUIDED | SANA_CALL | PAG)
def SanaPAGPipeline():
    return diffusers.SanaPAGPipeline(**sana_parts())


@tiny("sana", lambda: GUIDED | SANA_CALL | dict(control_image=picture(32)))
def SanaControlNetPipeline():
    control = settle(diffusers.SanaControlNetModel(**sana_sizes(num_layers=1)))
    return diffusers.SanaControlNetPipeline(**sana_parts(controlnet=control))


def sprint_parts():
    net = dict(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    scheduler = diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    return sana_parts(net, scheduler=scheduler)


@tiny("sana-sprint", lambda: dict(prompt="a cat", guidance_scale=4.5) | SANA_CALL)
def SanaSprintPipeline():
    return diffusers.SanaSprintPipeline(**sprint_parts())


@tiny(
    "sana-sprint",
    lambda: dict(prompt="a cat", guidance_scale=4.5, image=picture(32)) | HALF | SANA_CALL,
    begins="image",
)
def SanaSprintImg2ImgPipeline():
    return diffusers.SanaSprintImg2ImgPipeline(**sprint_parts())


# Lumina; both versions count on an autoencoder that halves three times


@tiny("lumina", lambda: GUIDED | SHORT | dict(height=64, width=64))
def LuminaPipeline():
    net = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=8,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=16,
    )
    sizes = causal_sizes(eos_token_id=1, bos_token_id=2)
    return diffusers.LuminaPipeline(
        transformer=settle(net),
        scheduler=flow(shift=1.0),
        vae=kl_vae(blocks=4),
        text_encoder=transformers.GemmaModel(transformers.GemmaConfig(**sizes)),
        tokenizer=gemma_tokenizer(),
    )


@tiny(
    "lumina2",
    lambda: GUIDED | dict(height=64, width=64, system_prompt="draw", max_sequence_length=32),
)
def Lumina2Pipeline():
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        scaling_factor=1.0,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(128, 32, 32),
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        transformer=settle(net),
        scheduler=flow(shift=6.0),
        vae=kl_vae(blocks=4),
        text_encoder=gemma2(),
        tokenizer=gemma_tokenizer(),
    )


# AuraFlow


@tiny("auraflow", lambda: GUIDED | SHORT)
def AuraFlowPipeline():
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text("UMT5"),
        vae=kl_vae(scaling_factor=0.13025, shift_factor=None),
        transformer=settle(net),
        scheduler=flow(shift=1.73),
    )


# Bria


@tiny("bria", lambda: GUIDED | SHORT)
def BriaPipeline():
    net = diffusers.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return diffusers.BriaPipeline(
        transformer=settle(net),
        scheduler=flow(**FLUX_SHIFTS),
        vae=kl_vae(shift_factor=None),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )


def fibo_parts():
    net = diffusers.BriaFiboTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        text_encoder_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_spatial=16,
    )
    # the words start with the number that the pipeline gives an empty prompt
    sizes = causal_sizes(vocab_size=128001)
    sizes.pop("head_dim")
    return dict(
        transformer=settle(net),
        scheduler=flow(**FLUX_SHIFTS),
        vae=vae,
        text_encoder=transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**sizes)),
        tokenizer=qwen_tokenizer(),
    )


@tiny("bria-fibo", lambda: GUIDED | dict(height=64, width=64, max_sequence_length=32))
def BriaFiboPipeline():
    return diffusers.BriaFiboPipeline(**fibo_parts())


@tiny(
    "bria-fibo",
    lambda: (
        GUIDED
        | dict(height=64, width=64, max_sequence_length=64)
        | dict(prompt='{"edit_instruction": "a cat"}', image=picture(64), _auto_resize=False)
    ),
)
def BriaFiboEditPipeline():
    return diffusers.BriaFiboEditPipeline(**fibo_parts())


@tiny("bria-fibo2", lambda: dict(GUIDED))
def BriaFibo2Pipeline():
    net = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        patch_size=2,
        dim=32,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=48,
        injection_layer_ids=(0, 1, 2, 3, 4),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        axes_dims=(4, 4, 8),
        axes_lens=(256, 64, 64),
    )
    return diffusers.BriaFibo2Pipeline(
        transformer=settle(net),
        scheduler=flow(**FLUX_SHIFTS),
        vae=flux2_vae(),
        text_encoder=qwen3_vl(layers=36),  # layers up to the last are read
        processor=qwen3_processor(),
    )


# CogView


@tiny("cogview3", lambda: GUIDED | SHORT)
def CogView3PlusPipeline():
    net = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=4.0,
        timestep_spacing="linspace",
        clip_sample=False,
    )
    return diffusers.CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=kl_vae(scaling_factor=1.15258426, shift_factor=None),
        transformer=settle(net),
        scheduler=scheduler,
    )


def cogview4_parts(channels=4):
    net = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=channels,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    shifts = dict(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75)
    return dict(
        tokenizer=qwen_tokenizer(),
        text_encoder=transformers.GlmModel(transformers.GlmConfig(**causal_sizes())),
        vae=kl_vae(scaling_factor=1.0, shift_factor=0.0),
        transformer=settle(net),
        scheduler=flow(shift=1.0, time_shift_type="linear", **shifts),
    )


@tiny("cogview4", lambda: GUIDED | SHORT)
def CogView4Pipeline():
    return diffusers.CogView4Pipeline(**cogview4_parts())


@tiny("cogview4", lambda: GUIDED | SHORT | dict(control_image=picture()))
def CogView4ControlPipeline():
    return diffusers.CogView4ControlPipeline(**cogview4_parts(channels=8))


# HiDream


@tiny("hidream", lambda: GUIDED | SHORT)
def HiDreamImagePipeline():
    net = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[32, 16],
        text_emb_dim=32,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**causal_sizes()))
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        solver_order=2,
        solver_type="bh2",
    )
    return diffusers.HiDreamImagePipeline(
        transformer=settle(net),
        scheduler=scheduler,
        vae=kl_vae(),
        text_encoder=clip_text(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(d_model=32),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama,
        tokenizer_4=qwen_tokenizer(),
    )


# Flux 2


def flux2_vae():
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )


def flux2_net(guidance=True):
    net = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return settle(net)


LAYERS = dict(text_encoder_out_layers=(1, 2, 3)) | LONG


def klein_parts(**more):
    return (
        dict(
            transformer=flux2_net(guidance=False),
            scheduler=flow(**FLUX_SHIFTS),
            vae=flux2_vae(),
            text_encoder=qwen3("Qwen3ForCausalLM", layers=3),
            tokenizer=qwen_tokenizer(),
        )
        | more
    )


@tiny("flux2", lambda: dict(prompt="a cat", guidance_scale=3.0) | SIZE | LAYERS)
def Flux2KleinPipeline():
    return diffusers.Flux2KleinPipeline(**klein_parts())


@tiny("flux2", lambda: dict(prompt="a cat", image=picture(64)) | SIZE | LAYERS)
def Flux2KleinKVPipeline():
    return diffusers.Flux2KleinKVPipeline(**klein_parts())


@tiny(
    "flux2",
    lambda: (
        dict(prompt="a cat", image=picture(64), mask_image=mask(64), guidance_scale=3.0)
        | HALF
        | LAYERS
        | dict(height=64, width=64)
    ),
    begins="image",
)
def Flux2KleinInpaintPipeline():
    return diffusers.Flux2KleinInpaintPipeline(**klein_parts())


@tiny("flux2", lambda: dict(prompt="a cat", guidance_scale=4.0) | SIZE | LAYERS)
def Flux2Pipeline():
    eyes = transformers.PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=8,
        image_size=32,
        patch_size=8,
    )
    text = transformers.MistralConfig(**causal_sizes(layers=3))
    config = transformers.Mistral3Config(
        text_config=text, vision_config=eyes, image_token_index=1, spatial_merge_size=1
    )
    words = ["<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|im_start|>", "<|im_end|>"]
    specials = dict(pad_token="<pad>", eos_token="<|im_end|>", unk_token="<pad>")
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            patch_size=8, size=dict(longest_edge=32)
        ),
        tokenizer=qwen_tokenizer(words, **specials),
        patch_size=8,
        chat_template=CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "[IMG]"),
    )
    return diffusers.Flux2Pipeline(
        transformer=flux2_net(),
        scheduler=flow(**FLUX_SHIFTS),
        vae=flux2_vae(),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
    )


# VisualCloze: pictures in a grid, of which Flux fills one

SIZE_UP = dict(upsampling_height=32, upsampling_width=32, upsampling_strength=0.5)


def cloze_parts():
    return flux_parts(in_channels=48, out_channels=16, resolution=16)


def cloze_call(**more):
    rows = [[picture(), picture(shade=90)], [picture(shade=40), None]]
    words = dict(task_prompt="paint a cat", content_prompt="a cat")
    return words | dict(image=rows, guidance_scale=30.0) | LONG | more


@tiny("flux-cloze", lambda: cloze_call())
def VisualClozeGenerationPipeline():
    return diffusers.VisualClozeGenerationPipeline(**cloze_parts())


# first a small picture, then the same one again, larger
@tiny("flux-cloze", lambda: cloze_call(**SIZE_UP))
def VisualClozePipeline():
    pipe = diffusers.VisualClozePipeline(**cloze_parts())
    for stage in (pipe.generation_pipe, pipe.upsampling_pipe):
        stage.set_progress_bar_config(disable=True)
    return pipe


# Qwen-Image 2.1


@tiny("qwenimage21", lambda: qwen21_call())
def QwenImage21Pipeline():
    net = diffusers.QwenImage21Transformer2DModel(
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=8,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False] * 4,
        latents_mean=[0.1, -0.2, 0.3, 0.0] * 2,
        latents_std=[1.0, 1.5, 0.8, 1.2] * 2,
    )
    return diffusers.QwenImage21Pipeline(
        transformer=settle(net),
        scheduler=flow(**QWEN_SHIFTS),
        vae=vae,
        text_encoder=qwen3_vl(),
        processor=qwen3_processor(),
    )


def qwen21_call():
    guided = dict(prompt="a cat", negative_prompt="a dog", true_cfg_scale=3.0)
    return guided | dict(height=128, width=128)


# HunyuanImage


def hunyuan_image_sizes(**options):
    return (
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=16,
            rope_axes_dim=(4, 4),
        )
        | options
    )


@tiny(
    "hunyuan-image",
    lambda: dict(prompt="a cat, that says 'miau'", negative_prompt="a dog") | SIZE,
)
def HunyuanImagePipeline():
    net = diffusers.HunyuanImageTransformer2DModel(**hunyuan_image_sizes(text_embed_2_dim=16))
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.75289,
    )
    guider = diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.5)
    return diffusers.HunyuanImagePipeline(
        scheduler=flow(shift=5.0),
        vae=vae,
        text_encoder=qwen25_vl(),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=t5_text(vocab_size=400),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=settle(net),
        guider=guider,
        ocr_guider=diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.5),
    )


@tiny("hunyuan-image", lambda: dict(prompt="a cat", image=picture(32), height=32, width=32))
def HunyuanImageRefinerPipeline():
    sizes = hunyuan_image_sizes(in_channels=16, out_channels=8, patch_size=(1, 1, 1))
    sizes |= dict(rope_axes_dim=(2, 2, 4), guidance_embeds=True)
    vae = diffusers.AutoencoderKLHunyuanImageRefiner(
        latent_channels=4,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    return diffusers.HunyuanImageRefinerPipeline(
        scheduler=flow(shift=4.0),
        vae=vae,
        text_encoder=qwen25_vl(),
        tokenizer=qwen_tokenizer(),
        transformer=settle(diffusers.HunyuanImageTransformer2DModel(**sizes)),
    )


# Kandinsky 5


def kandinsky5_parts(**more):
    net = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=24,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(2, 2, 4),
        **more,
    )
    return dict(
        transformer=settle(net),
        vae=kl_vae(blocks=4),
        text_encoder=qwen25_vl(),
        tokenizer=qwen25_processor(),
        text_encoder_2=clip_text(length=77),
        tokenizer_2=clip_tokenizer(),
        scheduler=flow(shift=3.0),
    )


KANDINSKY = dict(height=64, width=64) | LONG


@tiny("kandinsky5", lambda: GUIDED | KANDINSKY)
def Kandinsky5T2IPipeline():
    pipe = diffusers.Kandinsky5T2IPipeline(**kandinsky5_parts())
    pipe.resolutions = [(64, 64)]  # it has a list of sizes, all of a million pixels
    return pipe


@tiny("kandinsky5", lambda: GUIDED | KANDINSKY | dict(image=picture(64)), batches="")
def Kandinsky5I2IPipeline():
    pipe = diffusers.Kandinsky5I2IPipeline(**kandinsky5_parts(visual_cond=True))
    pipe.resolutions = [(64, 64)]
    return pipe


# Krea 2


@tiny("krea2", lambda: GUIDED | LONG)
def Krea2Pipeline():
    net = diffusers.Krea2Transformer2DModel(
        in_channels=32,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=24,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.Krea2Pipeline(
        scheduler=flow(**FLUX_SHIFTS),
        vae=qwen_vae(),
        text_encoder=qwen3_vl("Qwen3VLModel"),
        tokenizer=qwen_tokenizer(),
        transformer=settle(net),
        text_encoder_select_layers=(1, 2),
    )


# LongCat-Image


def longcat_parts(blocks=2):
    net = diffusers.LongCatImageTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return dict(
        scheduler=flow(**FLUX_SHIFTS),
        vae=kl_vae(16, blocks),
        text_encoder=qwen25_vl(),
        tokenizer=qwen_tokenizer(),
        text_processor=qwen25_processor(),
        transformer=settle(net),
    )


@tiny("longcat-image", lambda: GUIDED | dict(enable_prompt_rewrite=False))
def LongCatImagePipeline():
    return diffusers.LongCatImagePipeline(**longcat_parts())


# the picture to edit is brought to a million pixels
@tiny(
    "longcat-image",
    lambda: dict(prompt="a cat", negative_prompt="a dog", guidance_scale=3.0, image=picture(32)),
)
def LongCatImageEditPipeline():
    return diffusers.LongCatImageEditPipeline(**longcat_parts(blocks=6))


# OmniGen


@tiny(
    "omnigen",
    lambda: dict(
        prompt="a cat as <img><|image_1|></img>",
        input_images=[picture(64)],
        guidance_scale=2.5,
        img_guidance_scale=1.6,
        max_input_image_size=64,
        height=64,
        width=64,
    ),
)
def OmniGenPipeline():
    net = diffusers.OmniGenTransformer2DModel(
        in_channels=4,
        patch_size=2,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        num_layers=2,
        pad_token_id=0,
        vocab_size=300,
        max_position_embeddings=512,
        rope_scaling=dict(long_factor=[1.0] * 4, short_factor=[1.0] * 4, type="su"),
        pos_embed_max_size=32,
        time_step_dim=16,
    )
    return diffusers.OmniGenPipeline(
        transformer=settle(net),
        scheduler=flow(shift=1.0, invert_sigmas=True),
        vae=kl_vae(blocks=4, scaling_factor=0.13025, shift_factor=None),
        tokenizer=qwen_tokenizer(),
    )


# Ovis-Image


@tiny("ovis-image", lambda: GUIDED | dict(max_sequence_length=256))
def OvisImagePipeline():
    net = diffusers.OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.OvisImagePipeline(
        scheduler=flow(**FLUX_SHIFTS),
        vae=kl_vae(),
        text_encoder=qwen3(),
        tokenizer=qwen_tokenizer(),
        transformer=settle(net),
    )


# PRX


def prx_net(channels, **options):
    net = diffusers.PRXTransformer2DModel(
        in_channels=channels,
        context_in_dim=16,
        hidden_size=16,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
        **options,
    )
    return settle(net)


def prx_call():
    # words are cleaned with a further package, ftfy; so what a text encoder would make of them
    random = torch.Generator().manual_seed(1)
    words, others = torch.randn(2, 1, 16, 16, generator=random)
    seen = torch.ones(1, 16, dtype=torch.bool)
    call = dict(prompt_embeds=words, negative_prompt_embeds=others, guidance_scale=3.0)
    call |= dict(prompt_attention_mask=seen, negative_prompt_attention_mask=seen)
    return call | SIZE | dict(use_resolution_binning=False)


@tiny("prx", prx_call, batches="")
def PRXPipeline():
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    side = transformers.T5GemmaModuleConfig(
        **causal_sizes(eos_token_id=1, bos_token_id=2, query_pre_attn_scalar=8)
    )
    sides = transformers.T5GemmaConfig(encoder=side, decoder=side)
    return diffusers.PRXPipeline(
        transformer=prx_net(4, patch_size=2),
        scheduler=flow(shift=3.0),
        text_encoder=T5GemmaEncoder(sides.encoder),
        tokenizer=gemma_tokenizer(),
        vae=kl_vae(),
    )


@tiny("prx", prx_call, batches="")
def PRXPixelPipeline():
    return diffusers.PRXPixelPipeline(
        transformer=prx_net(3, patch_size=4, bottleneck_size=8),
        scheduler=flow(shift=3.0),
        text_encoder=qwen3(),
        tokenizer=qwen_tokenizer(),
        prompt_max_tokens=16,
    )


# ERNIE-Image


@tiny("ernie-image", lambda: dict(GUIDED))
def ErnieImagePipeline():
    net = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=48,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 4, 8),
    )
    # its class is Mistral 3; of that only the part that reads words is used
    return diffusers.ErnieImagePipeline(
        transformer=settle(net),
        vae=flux2_vae(),
        text_encoder=transformers.MistralModel(transformers.MistralConfig(**causal_sizes())),
        tokenizer=qwen_tokenizer(),
        scheduler=flow(shift=4.0),
    )


# Nucleus-Image


@tiny("nucleus-image", lambda: GUIDED | LONG | dict(return_index=-2))
def NucleusMoEImagePipeline():
    net = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=32,
        out_channels=8,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        mlp_ratio=2.0,
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=[2.0] * 5,
    )
    return diffusers.NucleusMoEImagePipeline(
        transformer=settle(net),
        scheduler=flow(**FLUX_SHIFTS),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(),
        processor=qwen3_processor(),
    )


# Ideogram 4: one network for the words, another one without


def ideogram_net():
    net = diffusers.Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=48,
        adaln_dim=16,
        llm_features_dim=13 * 16,
        mrope_section=(4, 2, 2),
    )
    return settle(net)


@tiny(
    "ideogram4",
    lambda: (
        dict(prompt="a cat", guidance_scale=3.0, guidance_schedule=None)
        | dict(max_sequence_length=64)
        | SIZE
    ),
)
def Ideogram4Pipeline():
    return diffusers.Ideogram4Pipeline(
        scheduler=flow(),
        vae=flux2_vae(),
        text_encoder=qwen3_vl("Qwen3VLModel", layers=36),  # thirteen of them are read
        tokenizer=qwen_tokenizer(),
        transformer=ideogram_net(),
        unconditional_transformer=ideogram_net(),
    )


# JoyImage; the picture to edit is brought to a million pixels


def joy_parts(net):
    network = net(
        patch_size=[1, 2, 2],
        in_channels=16,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        mlp_width_ratio=2.0,
        num_layers=2,
        rope_dim_list=[4, 4, 8],
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=2,
        z_dim=16,
        dim_mult=[1] * 5,
        num_res_blocks=0,
        temperal_downsample=[False] * 4,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=32,
    )
    sharp(vae.quant_conv)
    return dict(
        scheduler=flow(shift=4.0),
        vae=vae,
        text_encoder=qwen3_vl(),
        tokenizer=qwen_tokenizer(),
        transformer=settle(network),
        processor=qwen3_processor(),
    )


@tiny(
    "joyimage",
    lambda: dict(prompt="a cat", negative_prompt="a dog", guidance_scale=3.0, image=picture(32)),
)
def JoyImageEditPipeline():
    parts = joy_parts(diffusers.JoyImageEditTransformer3DModel)
    return diffusers.JoyImageEditPipeline(**parts)


@tiny(
    "joyimage",
    lambda: (
        dict(prompt="a cat", negative_prompt="a dog", guidance_scale=3.0)
        | dict(images=[picture(32)], height=128, width=128)
    ),
    batches="",
)
def JoyImageEditPlusPipeline():
    parts = joy_parts(diffusers.JoyImageEditPlusTransformer3DModel)
    return diffusers.JoyImageEditPlusPipeline(**parts)


# DreamLite: a U-Net that follows a flow


def dreamlite_parts():
    net = diffusers.DreamLiteUNetModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=(
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(16, 32),
        cross_attention_dim=16,
        attention_head_dim=8,
        layers_per_block=1,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    return dict(
        text_encoder=qwen3_vl(),
        tokenizer=qwen_tokenizer(),
        processor=qwen3_processor(),
        vae=vae,
        unet=settle(net),
        scheduler=flow(**FLUX_SHIFTS),
    )


@tiny("dreamlite", lambda: GUIDED | LONG)
def DreamLitePipeline():
    return diffusers.DreamLitePipeline(**dreamlite_parts())


@tiny("dreamlite", lambda: dict(prompt="a cat") | SIZE | LONG)
def DreamLiteMobilePipeline():
    return diffusers.DreamLiteMobilePipeline(**dreamlite_parts())


# GLM-Image: a language model draws a sketch in words of its own, the transformer paints it


def glm_language():
    words = dict(vocab_size=400, vision_vocab_size=128, eos_token_id=None, pad_token_id=0)
    sizes = causal_sizes(layers=1, **words)
    sizes.pop("head_dim")
    turns = dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2])
    eyes = dict(depth=1, hidden_size=16, num_heads=2, image_size=32, patch_size=16)
    config = transformers.GlmImageConfig(
        text_config=sizes | dict(rope_parameters=turns, bos_token_id=None),
        vision_config=eyes | dict(intermediate_size=16),
        vq_config=dict(embed_dim=16, num_embeddings=128, latent_channels=16),
        image_token_id=1,
        image_start_token_id=2,
        image_end_token_id=3,
    )
    language = transformers.GlmImageForConditionalGeneration(config)
    with torch.no_grad():
        language.lm_head.weight.mul_(100)  # so that what it says depends on what it reads
    return language


def glm_processor():
    words = ["<|endoftext|>", "<|image|>", "<|image_start|>", "<|image_end|>", "<|grid|>"]
    names = dict(image_token="<|image|>", grid_bos_token="<|grid|>", grid_eos_token="<|grid|>")
    tokenizer = qwen_tokenizer(
        words, bos_token="<|image_start|>", model_specific_special_tokens=names
    )
    return transformers.GlmImageProcessor(
        image_processor=transformers.GlmImageImageProcessor(patch_size=16, merge_size=1),
        tokenizer=tokenizer,
        chat_template="{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}"
        "{% endfor %}{% endfor %}",
    )


@tiny("glm-image", lambda: dict(prompt="a cat, 'miau'", guidance_scale=1.5, height=32, width=32))
def GlmImagePipeline():
    net = diffusers.GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=128,
    )
    statistics = dict(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 1.5, 0.8, 1.2])
    return diffusers.GlmImagePipeline(
        tokenizer=transformers.ByT5Tokenizer(),
        processor=glm_processor(),
        text_encoder=t5_text(vocab_size=400),
        vision_language_encoder=glm_language(),
        vae=kl_vae(blocks=4, shift_factor=None, **statistics),
        transformer=settle(net),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    )
