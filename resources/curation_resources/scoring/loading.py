"""Load a checkpoint for measuring: its decoder, LM head, tokenizer and processor."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

# Imported from its module, because some versions export a dummy at the top level if torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_flash_attn_2_available

from curation_resources.scoring.attention_layers import Projections, attention_projections
from curation_resources.scoring.complete_weights import LoadingError, load_config, load_whole, non_finite_weight
from curation_resources.scoring.head import Head

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")
"""Supported attention implementations; see `load_checkpoint`."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""A folder without any of these files has no processor."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, ready for measuring.

    Attributes:
        decoder: returns `last_hidden_state` after the final norm.
        head: turns hidden states into logits.
        tokenizer: the folder's own fast tokenizer.
        device: device of the weights.
        max_length: longest context in tokens.
        vocabulary: rows of the input embedding.
        processor: turns images into model inputs; None for a text model, or if the folder has none.
        model: the whole model that decoder and head are parts of: its named parameters are the weights.
        folder: folder that it was loaded from.
        adapter: the LoRA folder that was applied to it, or None.
    """

    decoder: nn.Module
    head: Head
    tokenizer: Any
    device: torch.device
    max_length: int
    vocabulary: int
    processor: Any = None
    model: Any = None
    folder: Path | None = None
    adapter: Path | None = None

    @cached_property
    def uncompiled(self) -> nn.Module:
        """The decoder before compilation: hooks on the layers of a compiled decoder may not run."""
        found: nn.Module = getattr(self.decoder, "_orig_mod", self.decoder)
        return found

    @cached_property
    def attention(self) -> list[Projections]:
        """The attention projections of every layer.

        Raises:
            AttentionError: they cannot be identified.
        """
        return attention_projections(self.uncompiled, self.model.config)


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first CUDA device if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_checkpoint(
    folder: Path,
    adapter: Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    max_length: int | None = None,
    trust_remote_code: bool = False,
    attention: str = "auto",
    compile_model: bool = False,
) -> Checkpoint:
    """Load a model folder (safetensors only) with its LoRA adapter, if any, and freeze it.

    Decoder and head are separated and verified against the whole model on a few tokens: a family that computes its
    logits in
    an unknown way is rejected, never measured wrongly. So is a model whose tokens attend to later ones.

    Args:
        folder: transformers model folder, of a text model or a vision-language model.
        adapter: peft LoRA folder; needs the `peft` package.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: `float32`, `bfloat16` or `float16`.
        max_length: longest sequence in tokens; default and upper bound is the model's context.
        trust_remote_code: run Python code that the folder ships.
        attention: `sdpa`, `eager` or `flash_attention_2`; `auto` is FlashAttention 2 if it is installed and the weights
            are in half precision on a CUDA device, else the family's default (`sdpa`).
        compile_model: compile the decoder, for any batch shape; the first batches take longer.

    Raises:
        LoadingError: the decoder and LM head cannot be separated, the processor cannot be loaded, or the attention
            implementation is not available.
    """
    target = pick_device(device)
    config = load_config(folder, trust_remote_code)
    if target.type == "cuda" and dtype == "float32":
        # By default, convolutions (the patch embeddings of vision towers) would round their inputs to 10 bits.
        torch.backends.cudnn.allow_tf32 = False
    attn = pick_attention(attention, config, target, dtype)
    model = load_model(folder, config, dtype, trust_remote_code, attn)
    if adapter is not None:
        model = _adapted(model, adapter, merged=dtype == "float32")
    model = model.to(target).eval()
    model.requires_grad_(False)
    parts = encoding_parts(folder, model, max_length, trust_remote_code)
    where: dict[str, Any] = {"folder": Path(folder), "adapter": adapter if adapter is None else Path(adapter)}
    checkpoint = Checkpoint(decoder=_decoder(model), head=_head(model), device=target, model=model, **where, **parts)
    _check_logits(model, checkpoint)
    _check_causal(model, checkpoint)
    if compile_model:
        # Lengths change from batch to batch; without dynamic shapes each new one would be compiled.
        compiled: Any = torch.compile(checkpoint.decoder, dynamic=True)
        return replace(checkpoint, decoder=compiled)
    return checkpoint


def _adapted(model: Any, adapter: Path, *, merged: bool) -> Any:
    """Return the model with a LoRA adapter, merged or beside its weights.

    In half precision, merging would round most of the adapter away, so it stays beside the weights, in fp32.
    """
    # Only runs with a warm-up checkpoint need peft.
    from peft import PeftModel  # noqa: PLC0415

    try:
        adapted = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise LoadingError(f"the adapter in {adapter} cannot be loaded: {error}") from error
    return adapted.merge_and_unload() if merged else adapted.get_base_model()


def load_model(
    folder: Path, config: Any, dtype: str, trust_remote_code: bool = False, attention: str | None = None
) -> Any:
    """Load the whole model of a folder, safetensors only, in the class that it is measured and trained in.

    Raises:
        LoadingError: weights are missing or damaged, or a required package is not installed.
    """
    loader: Any = AutoModelForImageTextToText if reads_images(config) else AutoModelForCausalLM
    model, _ = load_whole(
        loader,
        folder,
        "a language model",
        dtype=DTYPES[dtype],
        trust_remote_code=trust_remote_code,
        attn_implementation=attention,
    )
    return model


def encoding_parts(
    folder: Path, model: Any, max_length: int | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Return the arguments of `Encoder` for a loaded model and its folder."""
    context = context_length(model.config)
    images = reads_images(model.config)
    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code),
        "max_length": min(context, max_length or context),
        "vocabulary": len(model.get_input_embeddings().weight),
        "processor": load_processor(folder, model.config, trust_remote_code) if images else None,
    }


def reads_images(config: Any) -> bool:
    """Return True for the configuration of a vision-language model that transformers loads as one."""
    if getattr(config, "vision_config", None) is None:
        return False
    own_code = getattr(config, "auto_map", None) or {}
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in own_code


def pick_attention(name: str, config: Any, device: torch.device, dtype: str) -> str | None:
    """Return the attention implementation to load a model with; None leaves it to transformers (`sdpa` if possible).

    Raises:
        LoadingError: the implementation is unknown or not installed.
    """
    if name not in ATTENTION:
        raise LoadingError(f"there is no attention {name!r}; choose one of {', '.join(ATTENTION)}")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise LoadingError(
            "attention: flash_attention_2 needs the package flash-attn. Install it, or use attention: auto."
        )
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if reads_images(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    family = mapping.get(type(config), None)
    causal = not _looks_ahead(config, family)
    if name == "flash_attention_2" and not causal:
        raise LoadingError(
            "attention: flash_attention_2 does not support this model, whose image tokens look ahead. "
            "Use attention: auto."
        )
    if name != "auto":
        return name
    use_flash = (
        causal and device.type == "cuda" and dtype != "float32" and getattr(family, "_supports_flash_attn", False)
    )
    return "flash_attention_2" if use_flash and is_flash_attn_2_available() else None


def _looks_ahead(config: Any, family: Any) -> bool:
    """Return True if image tokens attend to later ones of their image (Gemma 3), which flash attention cannot do."""
    takes_types = family is not None and "token_type_ids" in inspect.signature(family.forward).parameters
    return takes_types or bool(getattr(config.get_text_config(), "use_bidirectional_attention", None))


def load_processor(folder: Path, config: Any, trust_remote_code: bool = False) -> Any:
    """Load the processor of a vision-language model's folder, without its video part; None if the folder has none.

    Images are scaled by Pillow even if torchvision is installed: the two differ slightly, and a measurement must not
    depend
    on the installed packages. Video processors need torchvision, and no videos are measured, so a processor that
    expects
    one gets none. (A processor that the folder ships as code is loaded unchanged.)

    Raises:
        LoadingError: the folder's processor cannot be loaded.
    """
    if not any((Path(folder) / name).is_file() for name in PROCESSOR_FILES):
        return None
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    try:
        if kind is None:
            return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return _image_processor_only(kind, folder, images, tokenizer)
    except (ImportError, OSError, ValueError, TypeError) as error:
        raise LoadingError(f"the processor in {folder} cannot be loaded: {error}") from error


def _image_processor_only(kind: Any, folder: Path, images: Any, tokenizer: Any) -> Any:
    """Return a processor of this kind with an image processor and a tokenizer, but without a video processor."""

    class ImageOnly(kind):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            # transformers insists on a video processor of the right class.
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": None}
    unknown = [name for name in kind.get_attributes() if name not in parts]
    if unknown:
        raise LoadingError(f"{kind.__name__} needs {', '.join(unknown)}, which is not supported")
    try:
        settings, _ = kind.get_processor_dict(folder)
    except OSError:
        # Older folders only have the image processor's file.
        settings = {}
    ImageOnly.__name__ = kind.__name__
    return ImageOnly.from_args_and_dict([parts[name] for name in kind.get_attributes()], settings)


def context_length(config: Any) -> int:
    """Return the longest sequence of a configuration, in tokens; composite models keep it in their text part."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)


def _decoder(model: Any) -> nn.Module:
    decoder = model.base_model
    if not isinstance(decoder, nn.Module) or decoder is model:
        raise LoadingError(f"{type(model).__name__} is not supported: it has no decoder separate from its LM head")
    return decoder


def _test_tokens(model: Any, checkpoint: Checkpoint) -> Tensor:
    """Return a few tokens for testing the model [1, up to 8], without image tokens, which would need an image."""
    media = [value for name, value in vars(model.config).items() if name.endswith(("_token_id", "_token_index"))]
    most = min(64, len(checkpoint.head.weight), checkpoint.vocabulary)
    return torch.tensor([[token for token in range(most) if token not in media][:8]], device=checkpoint.device)


def _check_causal(model: Any, checkpoint: Checkpoint) -> None:
    """Check that no token attends to later ones: it would see the token that it predicts, and padding."""
    ids = _test_tokens(model, checkpoint)
    changed = ids.clone()
    changed[0, -1] = ids[0, 0]
    with torch.inference_mode():
        states = [checkpoint.decoder(input_ids=tokens, use_cache=False).last_hidden_state for tokens in (ids, changed)]
    before, after = (state[:, :-1].float() for state in states)
    tolerance = 1e-3 if before.dtype == checkpoint.head.weight.dtype else 5e-2
    if not torch.allclose(before, after, rtol=tolerance, atol=tolerance * float(before.abs().max())):
        raise LoadingError(
            f"{type(model).__name__} is not supported: its tokens attend to later ones, so losses cannot be measured"
        )


def _check_logits(model: Any, checkpoint: Checkpoint) -> None:
    """Verify decoder and head against the model's own logits on a few tokens."""
    head = checkpoint.head
    ids = _test_tokens(model, checkpoint)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits.float()
        hidden = checkpoint.decoder(input_ids=ids, use_cache=False).last_hidden_state
        found = head.uncapped(hidden[0]).unsqueeze(0)
        if head.soft_cap is not None:
            found = head.soft_cap * torch.tanh(found / head.soft_cap)
    if not expected.isfinite().all():
        damaged = non_finite_weight(model)
        if damaged is not None:
            raise LoadingError(
                f"tensor {damaged} of the model in {checkpoint.folder} contains NaN or Infinity. Copy or download the "
                "model again, or name an earlier checkpoint."
            )
        raise LoadingError(
            f"the logits of the model in {checkpoint.folder} are not finite in {head.weight.dtype}, although its "
            "weights are. Use dtype: float32 or bfloat16."
        )
    tolerance = 1e-3 if head.weight.dtype == torch.float32 else 5e-2
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
        raise LoadingError(
            f"{type(model).__name__} is not supported: it computes its logits in an unknown way (a scale or cap that "
            "is not in its configuration?), so its gradients would be wrong"
        )


def _head(model: Any) -> Head:
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise LoadingError(f"{type(model).__name__} is not supported: it has no linear LM head")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight.detach(), layer.bias, scale, float(cap) if cap else None)
