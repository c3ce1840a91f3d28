"""Parts that the tiny video and audio pipelines share: words, pictures, small text encoders."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import inspect
import sys
import types

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderKLWan, UniPCMultistepScheduler
from PIL import Image

WORDS = 2000  # the size of a learned vocabulary
LETTERS = [chr(c) for c in range(33, 127)]
SD_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def pipeline(name, **parts):
    """The pipeline of that class.

    Several clean the prompt with ftfy and fail where it is missing: their modules get a
    stand-in that leaves the prompt as it is.
    """
    kind = getattr(diffusers, name)
    home = sys.modules[kind.__module__]
    if not hasattr(home, "ftfy"):
        home.ftfy = types.SimpleNamespace(fix_text=str)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            wake(part)
    return kind(**parts)


def default(name, argument, method="__call__"):
    "What a method of that pipeline takes when the argument is left out."
    method = getattr(getattr(diffusers, name), method)
    return inspect.signature(method).parameters[argument].default


def wake(net):
    "Small numbers for the weights that begin at zero: controls and gates shall have an effect."
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() > 1 and not weight.any():
                weight.normal_(std=0.1)


def picture(width=16, height=16, seed=0):
    "A picture of coloured noise."
    shade = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(shade)


def mask(width=16, height=16):
    "White where something is to be drawn: the right half."
    shade = np.zeros((height, width), dtype=np.uint8)
    shade[:, width // 2 :] = 255
    return Image.fromarray(shade)


def frames(count, width=16, height=16):
    return [picture(width, height, seed) for seed in range(count)]


def tape(count, width=16, height=16):
    "A video as a tensor, (1, 3, frames, height, width), 0 to 1."
    pixels = np.stack([np.asarray(frame) for frame in frames(count, width, height)])
    return torch.from_numpy(pixels).permute(3, 0, 1, 2)[None] / 255


def prompts(**more):
    "What a user says in every call."
    return dict(prompt="a cat", negative_prompt="a dog", **more)


def shrink(net, factor=0.3):
    "Smaller last weights, so that a random network's answers stay moderate."
    with torch.no_grad():
        list(net.parameters())[-2].mul_(factor)
    return net


def t5_tokenizer(length=16):
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return transformers.T5Tokenizer(
        vocab=[(piece, -float(len(piece))) for piece in pieces],
        extra_ids=0,
        model_max_length=length,
    )


def t5(width=16, kind="T5"):
    "A T5 encoder; kind 'UMT5' for the many-language one."
    config = getattr(transformers, kind + "Config")(
        vocab_size=128,
        d_model=width,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return getattr(transformers, kind + "EncoderModel")(config)


def clip_tokenizer(length=77):
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    vocab = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def clip(width=16, projection=False):
    config = transformers.CLIPTextConfig(
        vocab_size=200,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return getattr(transformers, kind)(config)


def clip_eyes(size=16, width=16, projection=True):
    "A CLIP image encoder and the processor before it."
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=size // 2,
    )
    kind = "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
    eyes = getattr(transformers, kind)(config)
    return eyes, transformers.CLIPImageProcessor(crop_size=size, size=size)


def siglip_sizes(size=16, width=16):
    return dict(
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=size,
        patch_size=size // 2,
    )


def siglip_eyes(size=16):
    "A SigLIP image encoder and the processor before it."
    lens = transformers.SiglipImageProcessor(size=dict(height=size, width=size))
    config = transformers.SiglipVisionConfig(**siglip_sizes(size))
    return transformers.SiglipVisionModel(config), lens


LLAMA_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<pad>")
QWEN_MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{{ part.text }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def learned_tokenizer(*texts, marks=(), length=1024, **options):
    """A byte-level tokenizer that has learned the words of `texts`, so that the instructions
    around a prompt take about as many tokens as with a real vocabulary."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<|endoftext|>", *marks],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(marks),
        model_max_length=length,
        **options,
    )


def decoder_sizes(layers=3, width=16, **more):
    "The sizes that language models such as Llama, Qwen and Gemma have in common."
    return dict(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **more,
    )


def qwen_vl(version="2_5_", layers=3, words=False):
    "Qwen2-VL ('2') or Qwen2.5-VL ('2_5_'); `words`: only the part that reads text."
    rope = dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=10000.0)
    text = decoder_sizes(layers, rope_parameters=rope)
    if words:
        config = getattr(transformers, f"Qwen{version}VLTextConfig")(**text)
        return getattr(transformers, f"Qwen{version}VLTextModel")(config)
    eyes = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=24, out_hidden_size=16)
    if version == "2":
        eyes = dict(depth=1, embed_dim=16, num_heads=2, hidden_size=16, mlp_ratio=2)
    config = getattr(transformers, f"Qwen{version}VLConfig")(text_config=text, vision_config=eyes)
    return getattr(transformers, f"Qwen{version}VLForConditionalGeneration")(config)


def autoencoder(latents=4, scales=2, **options):
    return AutoencoderKL(
        block_out_channels=(8,) * scales,
        latent_channels=latents,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * scales,
        up_block_types=("UpDecoderBlock2D",) * scales,
        **options,
    )


def wan_vae():
    "8 times in space, 4 times in time; 16 channels with the real means."
    return AutoencoderKLWan(
        base_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def wan_texts():
    return dict(text_encoder=t5(kind="UMT5"), tokenizer=t5_tokenizer())


def unipc_flow(shift=3.0, **options):
    "Wan's scheduler: UniPC on the path of flow matching."
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **options
    )


class NothingUnsafe:
    """Stands in for Cosmos' safety checker, whose package is not here; it passes everything."""

    def check_text_safety(self, text):
        return True

    def check_video_safety(self, video):
        return video

    def to(self, *args, **kwargs):
        return self
