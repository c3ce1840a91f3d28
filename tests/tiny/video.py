"""Video pipelines, tiny."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import sys

import diffusers
import torch
import transformers
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from pipelines import quiet
from tiny import moving
from tiny.base import tiny
from tiny.moving import frames, mask, picture, pipeline, prompts, shrink

SIZE = dict(height=16, width=16)
VIDEOS = "num_videos_per_prompt"
ONE = ""  # several videos of one prompt are refused, or the argument is there and passed over

# Wan ---------------------------------------------------------------------------------------

WAN_CALL = dict(SIZE, num_frames=5, guidance_scale=3.0, max_sequence_length=16)


def wan_sizes(**more):
    return dict(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        **more,
    )


def wan_net(kind="WanTransformer3DModel", **more):
    return getattr(diffusers, kind)(**wan_sizes(**more))


def wan_parts(shift=3.0):
    return dict(moving.wan_texts(), vae=moving.wan_vae(), scheduler=moving.unipc_flow(shift))


@tiny("wan", lambda: prompts(**WAN_CALL), batches=VIDEOS)
def WanPipeline():
    return pipeline("WanPipeline", transformer=wan_net(), **wan_parts())


def wan_two_experts():
    "Wan 2.2: one network for the noisy part of the path and one for the rest; not registered."
    torch.manual_seed(0)
    pipe = pipeline(
        "WanPipeline",
        transformer=wan_net(),
        transformer_2=wan_net(),
        boundary_ratio=0.875,
        **wan_parts(12.0),
    )
    return quiet(pipe)


def wan_eyes():
    "The picture's encoder; its hidden states are read, so it needs no projection."
    image_encoder, image_processor = moving.clip_eyes(projection=False)
    return dict(image_encoder=image_encoder, image_processor=image_processor)


@tiny("wan", lambda: prompts(image=picture(), **WAN_CALL), batches=ONE)
def WanImageToVideoPipeline():
    net = wan_net(in_channels=36, image_dim=16)
    return pipeline("WanImageToVideoPipeline", transformer=net, **wan_eyes(), **wan_parts())


@tiny(
    "wan",
    lambda: prompts(
        video=frames(5), strength=0.7, guidance_scale=3.0, max_sequence_length=16, **SIZE
    ),
    begins="image",
    batches=ONE,
)
def WanVideoToVideoPipeline():
    return pipeline("WanVideoToVideoPipeline", transformer=wan_net(), **wan_parts())


@tiny("wan", lambda: prompts(video=frames(5), mask=[mask()] * 5, **WAN_CALL), batches=ONE)
def WanVACEPipeline():
    net = wan_net("WanVACETransformer3DModel", vace_layers=[0, 1], vace_in_channels=96)
    return pipeline("WanVACEPipeline", transformer=net, **wan_parts(16.0))


def wan_animate_call():
    return prompts(
        image=picture(),
        pose_video=frames(5),
        face_video=frames(5),
        segment_frame_length=5,
        guidance_scale=3.0,
        max_sequence_length=16,
        **SIZE,
    )


@tiny("wan", wan_animate_call, batches=VIDEOS)
def WanAnimatePipeline():
    net = wan_net(
        "WanAnimateTransformer3DModel",
        image_dim=16,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    return pipeline("WanAnimatePipeline", transformer=net, **wan_eyes(), **wan_parts(5.0))


# CogVideoX ---------------------------------------------------------------------------------

COG_CALL = dict(SIZE, guidance_scale=3.0, max_sequence_length=16)


def cog_scheduler(kind=CogVideoXDDIMScheduler, shift=3.0):
    return kind(
        **moving.SD_BETAS,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=shift,
        timestep_spacing="trailing",
    )


def cog_parts(scheduler, net="CogVideoXTransformer3DModel", **more):
    transformer = getattr(diffusers, net)(
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=16,
        **more,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return dict(
        tokenizer=moving.t5_tokenizer(226),
        text_encoder=moving.t5(),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


@tiny("cogvideox", lambda: prompts(num_frames=9, **COG_CALL), batches=ONE)
def CogVideoXPipeline():
    return pipeline("CogVideoXPipeline", **cog_parts(cog_scheduler(), in_channels=4))


@tiny("cogvideox", lambda: prompts(image=picture(), num_frames=9, **COG_CALL), batches=ONE)
def CogVideoXImageToVideoPipeline():
    parts = cog_parts(
        cog_scheduler(shift=1.0), in_channels=8, use_rotary_positional_embeddings=True
    )
    return pipeline("CogVideoXImageToVideoPipeline", **parts)


@tiny(
    "cogvideox",
    lambda: prompts(video=frames(9), strength=0.8, **COG_CALL),
    begins="image",
    batches=ONE,
)
def CogVideoXVideoToVideoPipeline():
    scheduler = cog_scheduler(CogVideoXDPMScheduler, shift=1.0)
    return pipeline("CogVideoXVideoToVideoPipeline", **cog_parts(scheduler, in_channels=4))


@tiny("cogvideox", lambda: prompts(control_video=frames(9), **COG_CALL), batches=ONE)
def CogVideoXFunControlPipeline():
    parts = cog_parts(cog_scheduler(shift=1.0), in_channels=8)
    return pipeline("CogVideoXFunControlPipeline", **parts)


# LTX ---------------------------------------------------------------------------------------

LTX_CALL = dict(height=32, width=32, num_frames=9, guidance_scale=3.0, max_sequence_length=16)


def ltx_scheduler():
    "The schedule moves with the length of the video and ends at a noise level of 0.1."
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def ltx_parts(scheduler=None):
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    return dict(
        transformer=transformer,
        vae=vae,
        text_encoder=moving.t5(),
        tokenizer=moving.t5_tokenizer(128),
        scheduler=scheduler or ltx_scheduler(),
    )


@tiny("ltx", lambda: prompts(**LTX_CALL), batches=VIDEOS)
def LTXPipeline():
    return pipeline("LTXPipeline", **ltx_parts())


@tiny("ltx", lambda: prompts(image=picture(32, 32), **LTX_CALL), batches=VIDEOS)
def LTXImageToVideoPipeline():
    return pipeline("LTXImageToVideoPipeline", **ltx_parts())


@tiny("ltx", lambda: prompts(image=picture(32, 32), **LTX_CALL), batches=VIDEOS)
def LTXConditionPipeline():
    return pipeline("LTXConditionPipeline", **ltx_parts(FlowMatchEulerDiscreteScheduler()))


def ltx_long_call():
    call = dict(LTX_CALL, temporal_tile_size=16, temporal_overlap=8, decode_horizontal_tiles=1)
    return prompts(cond_image=picture(32, 32), decode_vertical_tiles=1, **call)


@tiny("ltx", ltx_long_call, batches="")
def LTXI2VLongMultiPromptPipeline():
    parts = ltx_parts(diffusers.LTXEulerAncestralRFScheduler())
    return pipeline("LTXI2VLongMultiPromptPipeline", **parts)


# Cosmos ------------------------------------------------------------------------------------

COSMOS_CALL = dict(height=32, width=32, guidance_scale=3.0, max_sequence_length=16)


def cosmos_net(latents, **more):
    "One channel more than the latents: it says which frames are given."
    return diffusers.CosmosTransformer3DModel(
        out_channels=latents,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        **more,
    )


def cosmos_parts(channels):
    "Cosmos 1: its own autoencoder and the EDM schedule."
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )
    scheduler = EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )
    return dict(
        transformer=cosmos_net(4, in_channels=channels),
        vae=vae,
        scheduler=scheduler,
        text_encoder=moving.t5(),
        tokenizer=moving.t5_tokenizer(512),
        safety_checker=moving.NothingUnsafe(),
    )


def cosmos2_parts(channels):
    "Cosmos 2: Wan's autoencoder and a path of flow matching with Karras' noise levels."
    return dict(
        transformer=cosmos_net(16, in_channels=channels, extra_pos_embed_type=None),
        vae=moving.wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        text_encoder=moving.t5(),
        tokenizer=moving.t5_tokenizer(512),
        safety_checker=moving.NothingUnsafe(),
    )


@tiny("cosmos", lambda: prompts(num_frames=9, **COSMOS_CALL), batches=VIDEOS)
def CosmosTextToWorldPipeline():
    return pipeline("CosmosTextToWorldPipeline", **cosmos_parts(4))


@tiny("cosmos", lambda: prompts(image=picture(32, 32), num_frames=9, **COSMOS_CALL), batches=VIDEOS)
def CosmosVideoToWorldPipeline():
    return pipeline("CosmosVideoToWorldPipeline", **cosmos_parts(5))


@tiny("cosmos2", lambda: prompts(**COSMOS_CALL))
def Cosmos2TextToImagePipeline():
    return pipeline("Cosmos2TextToImagePipeline", **cosmos2_parts(16))


@tiny(
    "cosmos2", lambda: prompts(image=picture(32, 32), num_frames=5, **COSMOS_CALL), batches=VIDEOS
)
def Cosmos2VideoToWorldPipeline():
    return pipeline("Cosmos2VideoToWorldPipeline", **cosmos2_parts(17))


# Stable Video Diffusion --------------------------------------------------------------------


def svd_call():
    return dict(image=picture(32, 32), height=32, width=32, num_frames=2, max_guidance_scale=2.5)


@tiny("svd", svd_call, batches=VIDEOS)
def StableVideoDiffusionPipeline():
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
    )
    scheduler = EulerDiscreteScheduler(
        **moving.SD_BETAS,
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    image_encoder, feature_extractor = moving.clip_eyes(224)  # the pipeline resizes to 224
    return pipeline(
        "StableVideoDiffusionPipeline",
        vae=vae,
        image_encoder=image_encoder,
        unet=shrink(unet),
        scheduler=scheduler,
        feature_extractor=feature_extractor,
    )


# AnimateDiff -------------------------------------------------------------------------------

ANIMATE_CALL = dict(SIZE, num_frames=4, guidance_scale=3.0)
DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")


def sd_unet(width=16, **more):
    return shrink(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=DOWN,
            up_block_types=UP,
            cross_attention_dim=width,
            attention_head_dim=2,
            **more,
        )
    )


def ddim():
    "The motion adapters' own: linear betas."
    betas = dict(moving.SD_BETAS, beta_schedule="linear")
    return DDIMScheduler(**betas, clip_sample=False, timestep_spacing="linspace", steps_offset=1)


def euler():
    "As with AnimateDiff-Lightning."
    betas = dict(moving.SD_BETAS, beta_schedule="linear")
    return EulerDiscreteScheduler(**betas, timestep_spacing="trailing")


def dpm(**more):
    return DPMSolverMultistepScheduler(
        **dict(moving.SD_BETAS, **more), algorithm_type="dpmsolver++", steps_offset=1
    )


def animate_parts(unet, scheduler=None, middle=True, **more):
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=middle,
        **more,
    )
    return dict(
        vae=moving.autoencoder(),
        text_encoder=moving.clip(),
        tokenizer=moving.clip_tokenizer(),
        unet=unet,
        motion_adapter=adapter,
        scheduler=scheduler or ddim(),
    )


def controlnet():
    return diffusers.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=DOWN,
        cross_attention_dim=16,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
    )


@tiny("animatediff", lambda: prompts(**ANIMATE_CALL), batches=ONE)
def AnimateDiffPipeline():
    return pipeline("AnimateDiffPipeline", **animate_parts(sd_unet()))


@tiny("animatediff", lambda: prompts(conditioning_frames=frames(4), **ANIMATE_CALL), batches=ONE)
def AnimateDiffControlNetPipeline():
    parts = animate_parts(sd_unet(), euler())
    return pipeline("AnimateDiffControlNetPipeline", controlnet=controlnet(), **parts)


def animate_from_video(**more):
    return prompts(video=frames(4), strength=0.8, guidance_scale=3.0, **SIZE, **more)


@tiny("animatediff", animate_from_video, begins="image", batches=ONE)
def AnimateDiffVideoToVideoPipeline():
    return pipeline("AnimateDiffVideoToVideoPipeline", **animate_parts(sd_unet()))


@tiny(
    "animatediff",
    lambda: animate_from_video(conditioning_frames=frames(4)),
    begins="image",
    batches=ONE,
)
def AnimateDiffVideoToVideoControlNetPipeline():
    parts = animate_parts(sd_unet())
    return pipeline("AnimateDiffVideoToVideoControlNetPipeline", controlnet=controlnet(), **parts)


@tiny("animatediff", lambda: prompts(**ANIMATE_CALL), batches=ONE)
def AnimateDiffSDXLPipeline():
    unet = sd_unet(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )
    second = dict(text_encoder_2=moving.clip(projection=True), tokenizer_2=moving.clip_tokenizer())
    return pipeline("AnimateDiffSDXLPipeline", **second, **animate_parts(unet, middle=False))


@tiny(
    "animatediff",
    lambda: prompts(conditioning_frames=frames(1), **ANIMATE_CALL),
    batches=ONE,
)
def AnimateDiffSparseControlNetPipeline():
    sparse = diffusers.SparseControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=16,
        attention_head_dim=2,
        motion_num_attention_heads=2,
        conditioning_channels=3,
        conditioning_embedding_out_channels=(8, 16),
        use_simplified_condition_embedding=False,
    )
    parts = animate_parts(sd_unet(), dpm(beta_schedule="linear", use_karras_sigmas=True))
    return pipeline("AnimateDiffSparseControlNetPipeline", controlnet=sparse, **parts)


@tiny("animatediff", lambda: prompts(pag_scale=2.0, **ANIMATE_CALL), batches=ONE)
def AnimateDiffPAGPipeline():
    return pipeline("AnimateDiffPAGPipeline", **animate_parts(sd_unet()))


@tiny("pia", lambda: prompts(image=picture(), strength=1.0, **ANIMATE_CALL), batches=ONE)
def PIAPipeline():
    "The picture and its mask are 5 more channels at the motion adapter's entrance."
    return pipeline("PIAPipeline", **animate_parts(sd_unet(), euler(), conv_in_channels=9))


# Earlier video UNets -----------------------------------------------------------------------


def unet3d(kind):
    return shrink(
        getattr(diffusers, kind)(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=16,
            attention_head_dim=4,
        )
    )


def text_to_video_parts(unet, scheduler=None):
    return dict(
        vae=moving.autoencoder(),
        text_encoder=moving.clip(),
        tokenizer=moving.clip_tokenizer(),
        unet=unet,
        scheduler=scheduler or dpm(),
    )


@tiny("text_to_video_sd", lambda: prompts(**ANIMATE_CALL), batches="")
def TextToVideoSDPipeline():
    return pipeline("TextToVideoSDPipeline", **text_to_video_parts(unet3d("UNet3DConditionModel")))


@tiny(
    "text_to_video_sd",
    lambda: prompts(video=frames(4), strength=0.8, guidance_scale=3.0),
    begins="image",
    batches="",
)
def VideoToVideoSDPipeline():
    parts = text_to_video_parts(unet3d("UNet3DConditionModel"))
    return pipeline("VideoToVideoSDPipeline", **parts)


@tiny(
    "i2vgen_xl",
    lambda: prompts(image=picture(), clip_skip=None, **ANIMATE_CALL),
    batches=VIDEOS,
)
def I2VGenXLPipeline():
    image_encoder, feature_extractor = moving.clip_eyes()
    eyes = dict(image_encoder=image_encoder, feature_extractor=feature_extractor)
    parts = text_to_video_parts(unet3d("I2VGenXLUNet"), ddim())
    return pipeline("I2VGenXLPipeline", **eyes, **parts)


# Mochi -------------------------------------------------------------------------------------


@tiny(
    "mochi",
    lambda: prompts(num_frames=7, guidance_scale=3.0, max_sequence_length=16, **SIZE),
    batches=VIDEOS,
)
def MochiPipeline():
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return pipeline(
        "MochiPipeline",
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        text_encoder=moving.t5(),
        tokenizer=moving.t5_tokenizer(256),
        force_zeros_for_empty_prompt=True,
    )


# HunyuanVideo ------------------------------------------------------------------------------

HUNYUAN_CALL = dict(SIZE, num_frames=5)


def hunyuan_net(kind="HunyuanVideoTransformer3DModel", **more):
    sizes = dict(
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
        in_channels=4,
        out_channels=4,
    )
    return getattr(diffusers, kind)(**dict(sizes, **more))


def hunyuan_vae():
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan_texts(template, text_encoder=None):
    "A Llama for the description and CLIP for its summary."
    llama = transformers.LlamaModel(transformers.LlamaConfig(**moving.decoder_sizes()))
    return dict(
        text_encoder=text_encoder or llama,
        tokenizer=moving.learned_tokenizer(template, marks=moving.LLAMA_MARKS),
        text_encoder_2=moving.clip(),
        tokenizer_2=moving.clip_tokenizer(),
    )


def hunyuan_parts(name, net, shift=7.0, **texts):
    template = moving.default(name, "prompt_template")["template"]
    return dict(
        hunyuan_texts(template, **texts),
        transformer=net,
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )


@tiny(
    "hunyuan_video",
    lambda: dict(prompt="a cat", guidance_scale=6.0, **HUNYUAN_CALL),
    batches=VIDEOS,
)
def HunyuanVideoPipeline():
    name = "HunyuanVideoPipeline"
    return pipeline(name, **hunyuan_parts(name, hunyuan_net()))


@tiny(
    "hunyuan_video",
    lambda: prompts(image=picture(), true_cfg_scale=3.0, guidance_scale=1.0, **HUNYUAN_CALL),
    batches=ONE,
)
def HunyuanSkyreelsImageToVideoPipeline():
    name = "HunyuanSkyreelsImageToVideoPipeline"
    return pipeline(name, **hunyuan_parts(name, hunyuan_net(in_channels=8)))


@tiny(
    "hunyuan_video",
    lambda: dict(prompt="a cat", image=picture(), guidance_scale=6.0, **HUNYUAN_CALL),
    batches=ONE,
)
def HunyuanVideoImageToVideoPipeline():
    name = "HunyuanVideoImageToVideoPipeline"
    eyes = dict(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=336,
        patch_size=14,
        model_type="clip_vision_model",
    )
    words = dict(moving.decoder_sizes(), model_type="llama")
    marks = ["<|endoftext|>", *moving.LLAMA_MARKS]
    config = transformers.LlavaConfig(
        vision_config=eyes,
        text_config=words,
        image_token_index=marks.index("<image>"),
        vision_feature_layer=-1,
        pad_token_id=marks.index("<pad>"),
    )
    llava = transformers.LlavaForConditionalGeneration(config)
    net = hunyuan_net(image_condition_type="token_replace")
    parts = hunyuan_parts(name, net, text_encoder=llava)
    lens = transformers.CLIPImageProcessor(crop_size=336, size=336)
    return pipeline(name, image_processor=lens, **parts)


@tiny(
    "hunyuan_video",
    lambda: dict(
        prompt="a cat",
        image=picture(32, 32),
        guidance_scale=6.0,
        latent_window_size=3,
        height=32,
        width=32,
        num_frames=5,
    ),
    batches=ONE,
)
def HunyuanVideoFramepackPipeline():
    name = "HunyuanVideoFramepackPipeline"
    net = hunyuan_net(
        "HunyuanVideoFramepackTransformer3DModel",
        patch_size=2,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    image_encoder, feature_extractor = moving.siglip_eyes()
    eyes = dict(image_encoder=image_encoder, feature_extractor=feature_extractor)
    return pipeline(name, **eyes, **hunyuan_parts(name, net))


# HunyuanVideo 1.5 --------------------------------------------------------------------------


def hunyuan15_parts(task, size=16):
    net = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(2, 4, 4),
        target_size=size,
        task_type=task,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16,) * 5,
        layers_per_block=1,
    )
    glyphs = transformers.T5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2
    )
    name = "HunyuanVideo15Pipeline"
    instruction = moving.default(name, "system_message", "_get_mllm_prompt_embeds")
    return dict(
        transformer=net,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder=moving.qwen_vl(words=True),
        tokenizer=moving.learned_tokenizer(
            instruction, marks=moving.QWEN_MARKS, chat_template=moving.CHAT
        ),
        text_encoder_2=transformers.T5EncoderModel(glyphs),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )


@tiny("hunyuan_video15", lambda: prompts(num_frames=5, **SIZE), batches=ONE)
def HunyuanVideo15Pipeline():
    return pipeline("HunyuanVideo15Pipeline", **hunyuan15_parts("t2v"))


@tiny("hunyuan_video15", lambda: prompts(image=picture(), num_frames=5), batches=VIDEOS)
def HunyuanVideo15ImageToVideoPipeline():
    image_encoder, feature_extractor = moving.siglip_eyes(54)
    return pipeline(
        "HunyuanVideo15ImageToVideoPipeline",
        image_encoder=image_encoder,
        feature_extractor=feature_extractor,
        **hunyuan15_parts("i2v"),
    )


# SkyReels V2 -------------------------------------------------------------------------------


def skyreels_net(**more):
    return wan_net("SkyReelsV2Transformer3DModel", **more)


@tiny("skyreels_v2", lambda: prompts(**WAN_CALL), batches=VIDEOS)
def SkyReelsV2Pipeline():
    return pipeline("SkyReelsV2Pipeline", transformer=skyreels_net(), **wan_parts(8.0))


@tiny("skyreels_v2", lambda: prompts(image=picture(), **WAN_CALL), batches=ONE)
def SkyReelsV2ImageToVideoPipeline():
    net = skyreels_net(in_channels=36, image_dim=16)
    return pipeline(
        "SkyReelsV2ImageToVideoPipeline", transformer=net, **wan_eyes(), **wan_parts(5.0)
    )


@tiny("skyreels_v2", lambda: prompts(base_num_frames=5, **WAN_CALL), batches=ONE)
def SkyReelsV2DiffusionForcingPipeline():
    net = skyreels_net(inject_sample_info=True)
    return pipeline("SkyReelsV2DiffusionForcingPipeline", transformer=net, **wan_parts(8.0))


@tiny("skyreels_v2", lambda: prompts(image=picture(), base_num_frames=5, **WAN_CALL), batches=ONE)
def SkyReelsV2DiffusionForcingImageToVideoPipeline():
    net = skyreels_net(inject_sample_info=True)
    name = "SkyReelsV2DiffusionForcingImageToVideoPipeline"
    return pipeline(name, transformer=net, **wan_parts(5.0))


@tiny(
    "skyreels_v2",
    lambda: prompts(
        video=frames(5), base_num_frames=9, overlap_history=5, **dict(WAN_CALL, num_frames=9)
    ),
    batches=ONE,
)
def SkyReelsV2DiffusionForcingVideoToVideoPipeline():
    net = skyreels_net(inject_sample_info=True)
    name = "SkyReelsV2DiffusionForcingVideoToVideoPipeline"
    return pipeline(name, transformer=net, **wan_parts(5.0))


# Networks grown from Wan -------------------------------------------------------------------


@tiny("chronoedit", lambda: prompts(image=picture(), **WAN_CALL), batches=ONE)
def ChronoEditPipeline():
    net = wan_net("ChronoEditTransformer3DModel", in_channels=36, image_dim=16)
    return pipeline("ChronoEditPipeline", transformer=net, **wan_eyes(), **wan_parts(5.0))


@tiny("lucy", lambda: prompts(video=frames(5), **WAN_CALL), batches=ONE)
def LucyEditPipeline():
    net = wan_net(in_channels=32)
    return pipeline("LucyEditPipeline", transformer=net, expand_timesteps=True, **wan_parts(5.0))


HELIOS_CALL = dict(
    SIZE,
    num_frames=9,
    guidance_scale=3.0,
    max_sequence_length=16,
    num_latent_frames_per_chunk=3,
    history_sizes=[4, 2, 1],
)


def helios_parts(**scheduler):
    sizes = wan_sizes(rope_dim=(4, 4, 4))
    sizes.pop("rope_max_seq_len")
    return dict(
        wan_parts(),
        transformer=diffusers.HeliosTransformer3DModel(**sizes),
        scheduler=diffusers.HeliosScheduler(**scheduler),
    )


@tiny("helios", lambda: prompts(**HELIOS_CALL), batches=ONE)
def HeliosPipeline():
    return pipeline("HeliosPipeline", **helios_parts(stages=1, stage_range=[0, 1]))


@tiny("anyflow", lambda: prompts(**WAN_CALL), batches=VIDEOS)
def AnyFlowPipeline():
    parts = dict(
        wan_parts(),
        transformer=wan_net("AnyFlowTransformer3DModel"),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    )
    return pipeline("AnyFlowPipeline", **parts)


@tiny("anyflow", lambda: prompts(**WAN_CALL), batches=VIDEOS)
def AnyFlowFARPipeline():
    parts = dict(
        wan_parts(),
        transformer=wan_net("AnyFlowFARTransformer3DModel", chunk_partition=(1, 1)),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    )
    return pipeline("AnyFlowFARPipeline", **parts)


# Cosmos 2.5 --------------------------------------------------------------------------------


COSMOS25_CALL = dict(COSMOS_CALL, max_sequence_length=64)


def cosmos25_parts():
    "The hidden states of every layer of Qwen are put side by side and projected."
    crossed = dict(
        use_crossattn_projection=True,
        crossattn_proj_in_channels=2 * 16,
        encoder_hidden_states_channels=16,
    )
    instruction = "You are a helpful assistant who will provide prompts to an image generator."
    return crossed, dict(
        text_encoder=moving.qwen_vl(layers=2),
        tokenizer=moving.learned_tokenizer(
            instruction, marks=moving.QWEN_MARKS, chat_template=moving.CHAT
        ),
        vae=moving.wan_vae(),
        scheduler=moving.unipc_flow(1.0, use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01),
        safety_checker=moving.NothingUnsafe(),
    )


@tiny("cosmos2_5", lambda: prompts(num_frames=5, **COSMOS25_CALL), batches=VIDEOS)
def Cosmos2_5_PredictBasePipeline():
    crossed, parts = cosmos25_parts()
    net = cosmos_net(16, in_channels=17, extra_pos_embed_type=None, **crossed)
    return pipeline("Cosmos2_5_PredictBasePipeline", transformer=net, **parts)


@tiny(
    "cosmos2_5",
    lambda: prompts(controls=frames(5, 32, 32), num_frames_per_chunk=5, **COSMOS25_CALL),
    batches=ONE,
)
def Cosmos2_5_TransferPipeline():
    crossed, parts = cosmos25_parts()
    net = cosmos_net(
        16, in_channels=17, extra_pos_embed_type=None, controlnet_block_every_n=1, **crossed
    )
    control = diffusers.CosmosControlNetModel(
        n_controlnet_blocks=1,
        in_channels=18,
        model_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        **crossed,
    )
    return pipeline("Cosmos2_5_TransferPipeline", transformer=net, controlnet=control, **parts)


# Cosmos 3 ----------------------------------------------------------------------------------


@tiny(
    "cosmos3",
    lambda: prompts(height=32, width=32, num_frames=5, guidance_scale=3.0),
    batches="",
)
def Cosmos3OmniPipeline():
    "One network reads the text and draws; there is no other text encoder."
    net = diffusers.Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=48,
        latent_channel=16,
        patch_latent_dim=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        vocab_size=moving.WORDS,
        rope_axes_dim=(4, 2, 2),
        dtype="float32",
    )
    words = moving.learned_tokenizer("a cat", marks=moving.QWEN_MARKS, chat_template=moving.CHAT)
    return pipeline(
        "Cosmos3OmniPipeline",
        transformer=net,
        text_tokenizer=words,
        vae=moving.wan_vae(),
        scheduler=moving.unipc_flow(1.0, use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01),
        enable_safety_checker=False,
    )


# Text to video zero ------------------------------------------------------------------------


@tiny(
    "text_to_video_zero",
    lambda: prompts(video_length=2, t0=0, t1=1, guidance_scale=3.0, **SIZE),
    batches=ONE,
)
def TextToVideoZeroPipeline():
    parts = text_to_video_parts(sd_unet(), ddim())
    return pipeline(
        "TextToVideoZeroPipeline",
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )


# Allegro and Latte -------------------------------------------------------------------------

UNCLEANED = dict(SIZE, guidance_scale=3.0, clean_caption=False)


@tiny(
    "allegro",
    lambda: prompts(num_frames=24, max_sequence_length=16, **UNCLEANED),
    batches=ONE,
)
def AllegroPipeline():
    net = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=6,
        caption_channels=16,
    )
    vae = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=16,
    )
    vae.enable_tiling()  # it decodes in tiles only
    return pipeline(
        "AllegroPipeline",
        tokenizer=moving.t5_tokenizer(512),
        text_encoder=moving.t5(),
        vae=vae,
        transformer=net,
        scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="linspace"),
    )


@tiny("latte", lambda: prompts(video_length=2, **UNCLEANED))
def LattePipeline():
    net = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )
    return pipeline(
        "LattePipeline",
        tokenizer=moving.t5_tokenizer(120),
        text_encoder=moving.t5(),
        vae=moving.autoencoder(),
        transformer=net,
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False),
    )


# LTX-2 -------------------------------------------------------------------------------------

LTX2_CALL = dict(
    LTX_CALL,
    num_frames=5,
    stg_scale=0.0,
    modality_scale=1.0,
    audio_guidance_scale=3.0,
    audio_stg_scale=0.0,
    audio_modality_scale=1.0,
)


def ltx2_net():
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=16,
        rope_double_precision=False,
        rope_type="split",
    )


def ltx2_connectors(layers):
    side = dict(num_attention_heads=2, attention_head_dim=8, num_layers=1)
    side["num_learnable_registers"] = None
    return LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=layers + 1,
        **{f"video_connector_{key}": value for key, value in side.items()},
        **{f"audio_connector_{key}": value for key, value in side.items()},
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
    )


def ltx2_parts(layers=2):
    words = moving.decoder_sizes(layers, head_dim=8)
    gemma = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=words, vision_config=moving.siglip_sizes())
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        decoder_causal=False,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    return dict(
        transformer=ltx2_net(),
        connectors=ltx2_connectors(layers),
        vae=vae,
        audio_vae=audio_vae,
        vocoder=vocoder,
        text_encoder=gemma,
        tokenizer=moving.learned_tokenizer("a cat and a dog", padding_side="left"),
        scheduler=ltx_scheduler(),
    )


@tiny("ltx2", lambda: prompts(**LTX2_CALL), batches=VIDEOS)
def LTX2Pipeline():
    return pipeline("LTX2Pipeline", **ltx2_parts())


@tiny("ltx2", lambda: prompts(image=picture(32, 32), image_crf=0, **LTX2_CALL), batches=VIDEOS)
def LTX2ImageToVideoPipeline():
    return pipeline("LTX2ImageToVideoPipeline", **ltx2_parts())


def ltx2_condition_call():
    shown = LTX2VideoCondition(frames=picture(32, 32), index=0, strength=1.0, crf=0)
    return prompts(conditions=[shown], **LTX2_CALL)


@tiny("ltx2", ltx2_condition_call, batches=VIDEOS)
def LTX2ConditionPipeline():
    return pipeline("LTX2ConditionPipeline", **ltx2_parts())


@tiny("ltx2", ltx2_condition_call, batches=VIDEOS)
def LTX2InContextPipeline():
    return pipeline("LTX2InContextPipeline", **ltx2_parts())


@tiny("ltx2", lambda: prompts(**dict(LTX_CALL, num_frames=5)), batches=VIDEOS)
def LTX2HDRPipeline():
    return pipeline("LTX2HDRPipeline", **ltx2_parts())


# EasyAnimate -------------------------------------------------------------------------------


EASY_CALL = dict(SIZE, num_frames=5, guidance_scale=3.0)


def easy_parts(channels):
    net = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=16,
        num_layers=1,
        mmdit_layers=1,
        sample_width=16,
        sample_height=16,
        patch_size=2,
        resize_inpaint_mask_directly=False,
    )
    vae = diffusers.AutoencoderKLMagvit(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return dict(
        transformer=net,
        vae=vae,
        text_encoder=moving.qwen_vl("2"),
        tokenizer=moving.learned_tokenizer(
            "a cat", marks=moving.QWEN_MARKS, chat_template=moving.CHAT
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@tiny("easyanimate", lambda: prompts(**EASY_CALL))
def EasyAnimatePipeline():
    return pipeline("EasyAnimatePipeline", **easy_parts(4))


def easy_inpaint_call():
    hidden = torch.ones(1, 1, 5, 16, 16) * 255
    hidden[:, :, 0] = 0  # the first frame is given
    return prompts(video=moving.tape(5), mask_video=hidden, strength=1.0, **EASY_CALL)


@tiny("easyanimate", easy_inpaint_call, begins="image", batches=ONE)
def EasyAnimateInpaintPipeline():
    return pipeline("EasyAnimateInpaintPipeline", **easy_parts(12))


# Kandinsky 5 -------------------------------------------------------------------------------

KANDINSKY_CALL = dict(SIZE, num_frames=5, guidance_scale=3.0, max_sequence_length=32)


def kandinsky_net(kind="Kandinsky5Transformer3DModel"):
    return getattr(diffusers, kind)(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(2, 2, 4),
        visual_cond=True,
    )


def kandinsky_parts(net, kind, template=""):
    "Qwen2.5-VL with its processor (`kind`), which has learned the words of the template, and CLIP."
    processor = getattr(transformers, kind)(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=moving.learned_tokenizer(template, marks=moving.QWEN_MARKS),
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )
    return dict(
        transformer=net,
        vae=hunyuan_vae(),
        text_encoder=moving.qwen_vl(),
        tokenizer=processor,
        text_encoder_2=moving.clip(),
        tokenizer_2=moving.clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def kandinsky5(name):
    "Built twice: the template around a prompt is known once there is a pipeline."
    parts = kandinsky_parts(kandinsky_net(), "Qwen2VLProcessor")
    template = pipeline(name, **parts).prompt_template
    return pipeline(name, **kandinsky_parts(parts["transformer"], "Qwen2VLProcessor", template))


@tiny("kandinsky5", lambda: prompts(**KANDINSKY_CALL), batches=VIDEOS)
def Kandinsky5T2VPipeline():
    return kandinsky5("Kandinsky5T2VPipeline")


@tiny(
    "kandinsky5",
    lambda: prompts(image=picture(), **dict(KANDINSKY_CALL, num_frames=17)),
    batches=VIDEOS,
)
def Kandinsky5I2VPipeline():
    return kandinsky5("Kandinsky5I2VPipeline")


@tiny("kandinsky6", lambda: prompts(sample_audio=False, **KANDINSKY_CALL), batches=VIDEOS)
def Kandinsky6TI2VAPipeline():
    parts = kandinsky_parts(
        kandinsky_net("Kandinsky6Transformer3DModel"),
        "Qwen2_5_VLProcessor",
        sys.modules[diffusers.Kandinsky6TI2VAPipeline.__module__]._PROMPT_TEMPLATE,
    )
    return pipeline("Kandinsky6TI2VAPipeline", **parts)


# Sana video --------------------------------------------------------------------------------

SANA_CALL = dict(height=32, width=32, frames=5, guidance_scale=3.0, use_resolution_binning=False)


def sana_video_parts(name, scheduler):
    net = diffusers.SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        rope_max_seq_len=32,
    )
    gemma = transformers.Gemma2Config(**moving.decoder_sizes(1, head_dim=8))
    instruction = moving.default(name, "complex_human_instruction")
    return dict(
        transformer=net,
        vae=moving.wan_vae(),
        text_encoder=transformers.Gemma2Model(gemma),
        tokenizer=moving.learned_tokenizer(*instruction),
        scheduler=scheduler,
    )


@tiny("sana_video", lambda: prompts(**SANA_CALL), batches=VIDEOS)
def SanaVideoPipeline():
    name = "SanaVideoPipeline"
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    return pipeline(name, **sana_video_parts(name, scheduler))


@tiny("sana_video", lambda: prompts(image=picture(32, 32), **SANA_CALL), batches=ONE)
def SanaImageToVideoPipeline():
    name = "SanaImageToVideoPipeline"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)
    return pipeline(name, **sana_video_parts(name, scheduler))


def sana_camera_call():
    call = dict(SANA_CALL, num_frames=9, action="w-8", intrinsics=[32.0, 32.0, 16.0, 16.0])
    del call["frames"], call["use_resolution_binning"]
    return prompts(image=picture(32, 32), **call)


@tiny("sana_wm", sana_camera_call, batches="")
def SanaWMPipeline():
    net = diffusers.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        caption_channels=16,
        chunk_plucker_channels=12,
        chunk_plucker_post_attn_blocks=1,
    )
    gemma = transformers.Gemma2Config(**moving.decoder_sizes(1, head_dim=8))
    parts = ltx2_parts()
    return pipeline(
        "SanaWMPipeline",
        transformer=net,
        vae=parts["vae"],
        text_encoder=transformers.Gemma2ForCausalLM(gemma),
        tokenizer=moving.learned_tokenizer("a cat and a dog"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0),
    )


# Motif video -------------------------------------------------------------------------------

MOTIF_CALL = dict(SIZE, num_frames=5, max_sequence_length=16)


def motif_parts():
    net = diffusers.MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        patch_size=1,
        text_embed_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
    )
    config = transformers.T5Gemma2EncoderConfig(
        text_config=moving.decoder_sizes(1, head_dim=8, dropout_rate=0.0),
        vision_config=moving.siglip_sizes(),
    )
    _, lens = moving.siglip_eyes()
    return dict(
        transformer=net,
        vae=moving.wan_vae(),
        text_encoder=transformers.T5Gemma2Encoder(config),
        tokenizer=moving.learned_tokenizer("a cat and a dog", length=512),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0),
        feature_extractor=lens,
    )


@tiny("motif_video", lambda: prompts(**MOTIF_CALL), batches=VIDEOS)
def MotifVideoPipeline():
    return pipeline("MotifVideoPipeline", **motif_parts())


@tiny("motif_video", lambda: prompts(image=picture(), **MOTIF_CALL), batches=ONE)
def MotifVideoImage2VideoPipeline():
    return pipeline("MotifVideoImage2VideoPipeline", **motif_parts())
