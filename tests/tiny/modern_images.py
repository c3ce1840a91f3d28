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
HALF = dict(strength=0.5)
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


def settle(net, factor=0.3, seed=0):
    """Weights left empty or at zero become small random ones, and the last ones small."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            empty = not weight.isfinite().all() or name.endswith("pad_token")
            if empty or (weight.ndim > 1 and not weight.any()):
                weight.normal_(0, 0.02, generator=random)
        matrices = [weight for weight in net.parameters() if weight.ndim > 1]
        matrices[-1].mul_(factor)
    return net


def kl_vae(latents=4, blocks=2, **options):
    options = dict(scaling_factor=0.3611, shift_factor=0.1159) | options
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16)[:blocks],
        latent_channels=latents,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )


def clip_text(projection=False):
    config = transformers.CLIPTextConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
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


def t5_text(kind=transformers.T5EncoderModel, config=transformers.T5Config, **options):
    sizes = dict(vocab_size=300, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return kind(config(**sizes | dict(pad_token_id=0, eos_token_id=1) | options))


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
    return dict(
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
    ) | options


def three_axes():
    return dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2])


def vision_words():
    """The numbers of the words that stand for a picture, as qwen_tokenizer counts them."""
    return dict(
        vision_start_token_id=3, vision_end_token_id=4, image_token_id=5, video_token_id=6
    )


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


# Stable Diffusion 3


def sd3_sizes(**options):
    return dict(
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
    ) | options


def sd3_parts(**more):
    return dict(
        transformer=settle(diffusers.SD3Transformer2DModel(**sd3_sizes(qk_norm="rms_norm"))),
        scheduler=flow(shift=3.0),
        vae=kl_vae(),
        text_encoder=clip_text(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(d_model=32),
        tokenizer_3=t5_tokenizer(),
    ) | more


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
    return diffusers.StableDiffusion3InpaintPipeline(**sd3_parts())


@tiny("sd3", lambda: GUIDED | SHORT | dict(control_image=picture()))
def StableDiffusion3ControlNetPipeline():
    return diffusers.StableDiffusion3ControlNetPipeline(**sd3_parts(controlnet=sd3_control()))


@tiny("sd3", lambda: GUIDED | SHORT | dict(control_image=picture(), control_mask=mask()))
def StableDiffusion3ControlNetInpaintingPipeline():
    control = sd3_control(extra_conditioning_channels=1)
    return diffusers.StableDiffusion3ControlNetInpaintingPipeline(**sd3_parts(controlnet=control))


# Flux 1


def flux_sizes(**options):
    return dict(
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
    ) | options


def flux_parts(**more):
    channels = {k: more.pop(k) for k in ("in_channels", "out_channels") if k in more}
    return dict(
        transformer=settle(diffusers.FluxTransformer2DModel(**flux_sizes(**channels))),
        scheduler=flow(**FLUX_SHIFTS),
        vae=kl_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
    ) | more


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
    lambda: flux_call(
        image=picture(), mask_image=mask(), control_image=picture(shade=90), **HALF
    ),
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
    lambda: flux_call(
        image=picture(), mask_image=mask(), control_image=picture(shade=90), **HALF
    ),
    begins="image",
)
def FluxControlNetInpaintPipeline():
    return diffusers.FluxControlNetInpaintPipeline(**flux_parts(controlnet=flux_control()))


@tiny("flux", lambda: flux_call(image=picture(), mask_image=mask()), begins="image")
def FluxFillPipeline():
    # besides the state: the masked picture, and the mask with one channel for each pixel
    return diffusers.FluxFillPipeline(**flux_parts(in_channels=48, out_channels=16))


@tiny("flux", lambda: flux_call(image=picture(), max_area=256, _auto_resize=False))
def FluxKontextPipeline():
    return diffusers.FluxKontextPipeline(**flux_parts())


@tiny(
    "flux",
    lambda: flux_call(
        image=picture(), mask_image=mask(), max_area=256, _auto_resize=False, **HALF
    ),
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
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * (halvings + 1),
        num_res_blocks=1,
        temperal_downsample=[False] * halvings,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.5, 0.8, 1.2],
        **options,
    )


def qwen_sizes(**options):
    return dict(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    ) | options


def qwen_parts(halvings=1, net=None, **more):
    network = diffusers.QwenImageTransformer2DModel(**qwen_sizes(**net or {}))
    return dict(
        transformer=settle(network),
        scheduler=flow(**QWEN_SHIFTS),
        vae=qwen_vae(halvings),
        text_encoder=qwen25_vl(),
        tokenizer=qwen_tokenizer(),
    ) | more


def qwen_edit_parts(**more):
    # edited pictures are brought to a million pixels, so the autoencoder halves five times
    return qwen_parts(halvings=5, processor=qwen25_processor(), **more)


def qwen_call(**more):
    guided = dict(prompt="a cat", negative_prompt="a dog", true_cfg_scale=3.0)
    return guided | SIZE | dict(max_sequence_length=64) | more


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


def qwen3(kind=transformers.Qwen3Model, **options):
    return kind(transformers.Qwen3Config(**causal_sizes(**options)))


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
    return dict(
        transformer=settle(net),
        scheduler=flow(shift=3.0),
        vae=kl_vae(),
        text_encoder=qwen3(),
        tokenizer=qwen_tokenizer(),
    ) | more


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
    lambda: GUIDED
    | SHORT
    | dict(image=picture(), mask_image=mask(), control_image=picture(shade=90)),
)
def ZImageControlNetInpaintPipeline():
    # the control picture, the mask, and the masked picture
    control = zimage_control(4 + 1 + 4)
    return diffusers.ZImageControlNetInpaintPipeline(**zimage_parts(controlnet=control))


@tiny("zimage", lambda: GUIDED | SHORT | dict(image=[picture()]))
def ZImageOmniPipeline():
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    sizes |= dict(num_attention_heads=2, patch_size=4, num_patches=16)
    eyes = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes))
    views = transformers.Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
    parts = zimage_parts(siglip_width=16, siglip=eyes, siglip_processor=views)
    return diffusers.ZImageOmniPipeline(**parts)
