"""Tokenizers and text encoders that several tiny pipelines share; made here, nothing is loaded."""

import string

import transformers

LETTERS = [c for c in string.printable if not c.isspace()]
VOCABULARY = 300  # of the encoders: room for every token below
LENGTH = 16  # tokens of a prompt, at most


def clip_tokenizer(length=LENGTH, **options):
    "CLIP's tokenizer over single letters: <start> is 0, <end> (also the padding) is 1."
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    return transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        model_max_length=length,
        **options,
    )


def clip_text(width=16, projection=False, length=LENGTH, **options):
    "CLIP's text encoder, two layers; with `projection` its pooled answer has `width` numbers too."
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **options,
    )
    if projection:
        return transformers.CLIPTextModelWithProjection(config).eval()
    return transformers.CLIPTextModel(config).eval()


def clip_vision(width=16, projection=True, **options):
    "CLIP's image encoder for 32 x 32 pictures; with `projection` its answer has `width` numbers."
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=width,
        **options,
    )
    if projection:
        return transformers.CLIPVisionModelWithProjection(config).eval()
    return transformers.CLIPVisionModel(config).eval()


def clip_pictures(side=32):
    "The processor before `clip_vision`."
    return transformers.CLIPImageProcessorPil(
        size=dict(shortest_edge=side), crop_size=dict(height=side, width=side)
    )


def t5_tokenizer(length=LENGTH, kind=transformers.T5Tokenizer, **options):
    "T5's tokenizer over single letters: <pad> is 0, </s> is 1, <unk> is 2."
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return kind(
        vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)],
        extra_ids=0,
        model_max_length=length,
        **options,
    )


def t5_text(width=16, config=transformers.T5Config, **options):
    "T5's encoder, one layer; `config=transformers.UMT5Config` gives UMT5's, MT5Config MT5's."
    model = {
        "t5": transformers.T5EncoderModel,
        "mt5": transformers.MT5EncoderModel,
        "umt5": transformers.UMT5EncoderModel,
    }
    settings = dict(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return model[config.model_type](config(**{**settings, **options})).eval()


def bert_tokenizer(length=LENGTH, **options):
    "BERT's tokenizer over single letters: [PAD] is 0."
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + c for c in LETTERS)]
    return transformers.BertTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        model_max_length=length,
        **options,
    )


def bert_text(width=16, **options):
    "BERT's encoder, one layer."
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        **options,
    )
    return transformers.BertModel(config).eval()


def xlm_roberta_tokenizer(length=LENGTH, **options):
    "XLM-RoBERTa's tokenizer over single letters: <pad> is 1."
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *LETTERS, "<mask>"]
    return transformers.XLMRobertaTokenizer(
        vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)],
        model_max_length=length,
        **options,
    )


def gemma_tokenizer(length=LENGTH, **options):
    "Gemma's tokenizer over single letters: <pad> is 0."
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *LETTERS]
    return transformers.GemmaTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        model_max_length=length,
        **options,
    )


def gemma2_text(width=16, **options):
    "Gemma 2 without its head, one layer."
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **options,
    )
    return transformers.Gemma2Model(config).eval()
