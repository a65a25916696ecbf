"""Tiny real models and tokenizers for tests, made from a config on the fly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte (byte-level alphabet), with EOS, padding and, if wanted, a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, "<pad>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def write_tiny_model(folder: Path, seed: int = 0, hidden: int = 32, chat: bool = True, context: int = 512) -> Path:
    """A random Qwen2 model with a byte tokenizer, as `from_pretrained` loads it."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(chat)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PARTS_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Qwen3-VL's way: contents as text or in parts, images where they are."""

IMAGES_FIRST_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA 1.5's: contents in parts only, a turn's images first, BOS left to the tokenizer."""

TINY_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "bos_token_id": None,
}


def byte_tokenizer_with(
    special: list[str], template: str, names: dict[str, str] | None = None, bos: bool = False
) -> PreTrainedTokenizerFast:
    """The byte tokenizer with more special tokens.

    Args:
        special: the tokens.
        template: its chat template.
        names: attributes of the tokenizer by which a processor finds some of them.
        bos: begin every text with `<eos>`.
    """
    core = byte_tokenizer().backend_tokenizer
    core.add_special_tokens(special)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<eos> $A", pair="<eos> $A $B", special_tokens=[("<eos>", 0)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", extra_special_tokens=names or special
    )
    fast.chat_template = template
    return fast


def write_tiny_qwen3_vl(folder: Path, seed: int = 0, context: int = 2048) -> Path:
    """A random Qwen3-VL model with a byte tokenizer and a processor: 4 to 16 tokens an image."""
    torch.manual_seed(seed)
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer_with(special, PARTS_TEMPLATE)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=TINY_TEXT
        | {"vocab_size": len(tokenizer), "max_position_embeddings": context, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.3,
        },
        vision_start_token_id=_token_id(tokenizer, special[0]),
        vision_end_token_id=_token_id(tokenizer, special[1]),
        image_token_id=_token_id(tokenizer, special[2]),
        video_token_id=_token_id(tokenizer, special[3]),
        tie_word_embeddings=False,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 4 * 64, "longest_edge": 16 * 64}
    )
    return _write_vision_model(folder, Qwen3VLForConditionalGeneration(config), tokenizer, images, "Qwen3VLProcessor")


def write_tiny_llava(folder: Path, seed: int = 0, context: int = 2048) -> Path:
    """A random LLaVA model (CLIP and Llama) with a byte tokenizer and a processor: 9 tokens an image."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer_with(["<image>"], IMAGES_FIRST_TEMPLATE, bos=True)
    config = LlavaConfig(
        text_config=TINY_TEXT
        | {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": context},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 8,
            "projection_dim": 32,
        },
        image_token_index=_token_id(tokenizer, "<image>"),
        image_seq_length=9,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    settings = {
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    model = LlavaForConditionalGeneration(config)
    return _write_vision_model(folder, model, tokenizer, images, "LlavaProcessor", settings)


def write_tiny_gemma3(folder: Path, seed: int = 0, context: int = 2048) -> Path:
    """A random Gemma 3 model (SigLIP) with a byte tokenizer and a processor: 4 tokens an image, which look ahead."""
    torch.manual_seed(seed)
    special = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    template = PARTS_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", special[0])
    names = {"boi_token": special[0], "eoi_token": special[1], "image_token": special[2]}
    tokenizer = byte_tokenizer_with(special, template, names)
    config = Gemma3Config(
        text_config=TINY_TEXT
        | {"vocab_size": len(tokenizer), "max_position_embeddings": context, "sliding_window": 64, "bos_token_id": 0},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        mm_tokens_per_image=4,
        boi_token_index=_token_id(tokenizer, special[0]),
        eoi_token_index=_token_id(tokenizer, special[1]),
        image_token_index=_token_id(tokenizer, special[2]),
        initializer_range=0.3,
    )
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    model = Gemma3ForConditionalGeneration(config)
    # Made as zeros, with which all images would look the same.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    return _write_vision_model(folder, model, tokenizer, images, "Gemma3Processor", {"image_seq_length": 4})


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _write_vision_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    images: Any,
    processor: str,
    settings: dict[str, Any] | None = None,
) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    # By hand: a Qwen3-VL processor with its video part can only be made where torchvision is installed.
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor, **(settings or {})}))
    return folder
