"""Audio pipelines, tiny, and Shap-E."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import functools

import diffusers
import tokenizers
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.shap_e.renderer import ShapERenderer
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import (
    StableAudio3DurationEmbedder,
)

from tiny import moving
from tiny.base import tiny
from tiny.moving import picture, pipeline, prompts, shrink

WAVES = "num_waveforms_per_prompt"


def noise(seconds, rate):
    "A stereo recording of noise, (1, 2, samples)."
    return torch.randn(1, 2, int(seconds * rate), generator=torch.Generator().manual_seed(0)) / 5


def oobleck(latents, rate):
    "An audio autoencoder that halves the length."
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        channel_multiples=[2, 4],
        decoder_channels=3,
        decoder_input_channels=latents,
        sampling_rate=rate,
    )


# Stable Audio ------------------------------------------------------------------------------


@tiny("stable_audio", lambda: prompts(audio_end_in_s=2.0, guidance_scale=3.0), batches=WAVES)
def StableAudioPipeline():
    net = diffusers.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=8,
        cross_attention_input_dim=8,
        global_states_input_dim=16,
        time_proj_dim=8,
    )
    # The checkpoints name the "cosine" class, which needs torchsde for its noise; this one has
    # the same noise levels and the same prediction, and takes its noise from torch.
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3,
        sigma_max=500.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )
    return pipeline(
        "StableAudioPipeline",
        vae=oobleck(4, 16),
        text_encoder=moving.t5(),
        projection_model=diffusers.StableAudioProjectionModel(
            text_encoder_dim=16, conditioning_dim=8, min_value=0, max_value=32
        ),
        tokenizer=moving.t5_tokenizer(),
        transformer=net,
        scheduler=scheduler,
    )


# Stable Audio 3 ----------------------------------------------------------------------------


def stable_audio3_parts(stochastic):
    "Euler steps for the base network; steps with fresh noise (stochastic) for the distilled one."
    net = diffusers.StableAudio3DiTModel(
        io_channels=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=9,
        timestep_features_dim=16,
        ff_mult=2,
        num_memory_tokens=2,
        use_differential_attention=False,
    )
    vae = diffusers.AutoencoderSAME(
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        use_differential_attention=False,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    )
    words = moving.decoder_sizes(
        2, head_dim=8, layer_types=["full_attention"] * 2, sliding_window=64
    )
    config = transformers.T5GemmaConfig(encoder=words, decoder=words, is_encoder_decoder=False)
    return dict(
        transformer=net,
        vae=vae,
        text_encoder=transformers.T5GemmaEncoderModel(config),
        tokenizer=moving.learned_tokenizer("a cat and a dog", length=16),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1, stochastic_sampling=stochastic
        ),
    )


@tiny("stable_audio3", lambda: prompts(duration=2.0, guidance_scale=3.0), batches=WAVES)
def StableAudio3Pipeline():
    return pipeline("StableAudio3Pipeline", **stable_audio3_parts(False))


def from_recording(**more):
    return dict(prompt="a cat", duration=2.0, audio=noise(2.0, 16), **more)


@tiny(
    "stable_audio3",
    lambda: from_recording(init_noise_level=0.8),
    begins="image",
    batches=WAVES,
)
def StableAudio3AudioToAudioPipeline():
    return pipeline("StableAudio3AudioToAudioPipeline", **stable_audio3_parts(True))


@tiny(
    "stable_audio3",
    lambda: from_recording(mask_start_seconds=1.0, mask_end_seconds=2.0),
    batches=WAVES,
)
def StableAudio3InpaintPipeline():
    return pipeline("StableAudio3InpaintPipeline", **stable_audio3_parts(True))


# AudioLDM 2 --------------------------------------------------------------------------------


def roberta_tokenizer():
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters]
    vocab = {word: i for i, word in enumerate(words)}
    return transformers.RobertaTokenizer(vocab=vocab, merges=[], model_max_length=16)


def clap():
    "Text and sound in one space."
    common = dict(num_hidden_layers=2, intermediate_size=24, projection_dim=16)
    words = dict(
        common,
        vocab_size=moving.WORDS,
        hidden_size=16,
        num_attention_heads=2,
        max_position_embeddings=96,
        pad_token_id=1,
    )
    sounds = dict(
        common,
        spec_size=64,
        window_size=4,
        num_mel_bins=64,
        depths=[2, 2],
        num_attention_heads=[2, 2],
        hidden_size=32,
        patch_size=2,
        patch_stride=2,
        patch_embed_input_channels=4,
        patch_embeds_hidden_size=16,
    )
    config = transformers.ClapConfig(text_config=words, audio_config=sounds, projection_dim=16)
    return transformers.ClapModel(config)


def hifi():
    "From a spectrogram of 8 bands to sound."
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
        initializer_range=0.12,
    )
    return transformers.SpeechT5HifiGan(config)


def audio_ddim():
    return DDIMScheduler(
        **moving.SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


@tiny(
    "audioldm2",
    lambda: prompts(audio_length_in_s=0.016, guidance_scale=3.0, max_new_tokens=4),
    batches=WAVES,
)
def AudioLDM2Pipeline():
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=([None, 16, 16], [None, 16, 16]),
        attention_head_dim=2,
    )
    gpt = transformers.GPT2Config(
        n_embd=16, n_head=2, n_layer=1, vocab_size=300, n_positions=128, max_new_tokens=4
    )
    return pipeline(
        "AudioLDM2Pipeline",
        vae=moving.autoencoder(in_channels=1, out_channels=1),
        text_encoder=clap(),
        text_encoder_2=moving.t5(),
        projection_model=diffusers.AudioLDM2ProjectionModel(
            text_encoder_dim=16, text_encoder_1_dim=16, langauge_model_dim=16
        ),
        language_model=transformers.GPT2LMHeadModel(gpt),
        tokenizer=roberta_tokenizer(),
        tokenizer_2=moving.t5_tokenizer(),
        feature_extractor=transformers.ClapFeatureExtractor(hop_length=7900),
        unet=shrink(unet),
        scheduler=audio_ddim(),
        vocoder=hifi(),
    )


# AudioLDM ----------------------------------------------------------------------------------


@tiny("audioldm", lambda: prompts(audio_length_in_s=0.016, guidance_scale=3.0), batches=WAVES)
def AudioLDMPipeline():
    "The prompt's one vector is the class of the picture of sound."
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16),
        attention_head_dim=2,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
    )
    return pipeline(
        "AudioLDMPipeline",
        vae=moving.autoencoder(in_channels=1, out_channels=1),
        text_encoder=transformers.ClapTextModelWithProjection(clap().config.text_config),
        tokenizer=roberta_tokenizer(),
        unet=shrink(unet),
        scheduler=audio_ddim(),
        vocoder=hifi(),
    )


# Dance Diffusion ---------------------------------------------------------------------------


@tiny("dance_diffusion", lambda: dict(audio_length_in_s=1.0), batches="batch_size")
def DanceDiffusionPipeline():
    net = diffusers.UNet1DModel(
        block_out_channels=(32, 32, 64),
        extra_in_channels=64,
        sample_size=64,
        sample_rate=64,
        use_timestep_embedding=False,
        time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D",
    )
    return pipeline("DanceDiffusionPipeline", unet=net, scheduler=IPNDMScheduler())


# ACE-Step ----------------------------------------------------------------------------------


def ace_call():
    return dict(prompt="a cat", lyrics="[verse] a dog", audio_duration=2.0, guidance_scale=3.0)


@tiny("ace_step", ace_call, batches="")
def AceStepPipeline():
    sizes = dict(
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=16,
    )
    net = diffusers.AceStepTransformer1DModel(
        num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, **sizes
    )
    conditions = AceStepConditionEncoder(
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **sizes,
    )
    qwen = transformers.Qwen3Config(**moving.decoder_sizes(1, head_dim=8))
    return pipeline(
        "AceStepPipeline",
        vae=oobleck(8, 16),
        text_encoder=transformers.Qwen3Model(qwen),
        tokenizer=moving.learned_tokenizer("a cat and a dog"),
        transformer=net,
        condition_encoder=conditions,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


# LongCat -----------------------------------------------------------------------------------


@tiny("longcat_audio", lambda: prompts(audio_duration_s=2.0, guidance_scale=3.0), batches="")
def LongCatAudioDiTPipeline():
    net = diffusers.LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=8
    )
    vae = diffusers.LongCatAudioDiTVae(
        channels=8,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=16,
    )
    return pipeline(
        "LongCatAudioDiTPipeline",
        vae=vae,
        text_encoder=moving.t5(kind="UMT5"),
        tokenizer=moving.t5_tokenizer(),
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )


# Shap-E ------------------------------------------------------------------------------------


def shap_parts():
    "A latent of 32 vectors is 4 matrices of a renderer's network, 8 rows each."
    prior = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=32,
        embedding_proj_dim=16,
        clip_embed_dim=32,
        time_embed_dim=32,
        time_embed_act_fn="gelu",
        additional_embeddings=0,
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8
    )
    scheduler = HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )
    renderer.decode_to_image = functools.partial(  # a few samples on each ray: else 10 seconds
        renderer.decode_to_image, ray_batch_size=320, n_coarse_samples=4, n_fine_samples=4
    )
    return dict(prior=prior, shap_e_renderer=renderer, scheduler=scheduler)


@tiny("shap_e", lambda: dict(prompt="a cat", guidance_scale=3.0, frame_size=4))
def ShapEPipeline():
    return pipeline(
        "ShapEPipeline",
        text_encoder=moving.clip(projection=True),
        tokenizer=moving.clip_tokenizer(),
        **shap_parts(),
    )


@tiny("shap_e", lambda: dict(image=picture(), guidance_scale=3.0, frame_size=4))
def ShapEImg2ImgPipeline():
    image_encoder, image_processor = moving.clip_eyes(projection=False)
    parts = shap_parts()
    return pipeline(
        "ShapEImg2ImgPipeline",
        image_encoder=image_encoder,
        image_processor=image_processor,
        **parts,
    )
