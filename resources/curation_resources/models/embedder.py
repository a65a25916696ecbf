"""Any sentence-transformers model as a pass: one vector per sample, from the text of its prompt and response.

Results have the same form as those of the scoring passes, so the same stores and selectors work with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation_resources.errors import UserError
from curation_resources.models.model_files import ModelError
from curation_resources.scoring.complete_weights import load_config
from curation_resources.scoring.samples import NON_FINITE, Request, Sample, SampleSignals, turn_text
from curation_resources.scoring.spec import PassSpec

WINDOW = 512
"""Samples that are tokenized and sorted by length together."""


class EmbeddingError(UserError):
    """An embedding model cannot be used."""


class EmbeddingPass:
    """Measures samples with an embedding model; the only signal is pooling `text`.

    Args:
        spec: the model; adapter, template and attention are ignored.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        EmbeddingError: sentence-transformers is not installed.
        ModelError: a module of the model has only pickled weights.
    """

    def __init__(self, spec: PassSpec, device: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415
        except ImportError as error:
            raise EmbeddingError(
                f"text_embeddings need sentence-transformers ({error}). Run pip install 'curation-assets[embedding]'"
            ) from error
        refuse_pickled_modules(spec.model_folder)
        self._batch_tokens = spec.batch_tokens
        self._model: Any = SentenceTransformer(
            str(spec.model_folder),
            device=device,
            trust_remote_code=spec.trust_remote_code,
            local_files_only=True,
            model_kwargs={"dtype": spec.dtype, "use_safetensors": True},
        )
        longest: int = self._model.max_seq_length or self._model.tokenizer.model_max_length
        self._max_length = _length_limit(longest, spec.max_length)
        self._model.max_seq_length = self._max_length

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None = None
    ) -> Iterator[list[SampleSignals]]:
        """Embed samples; see `curation_resources.scoring.forward.ForwardPass.stream`."""
        for start in range(0, len(samples), WINDOW):
            window = samples[start : start + WINDOW]
            results = [
                describe_text(self._model.tokenizer, self._max_length, sample, start + place)
                for place, sample in enumerate(window)
            ]
            wanted = [place for place, result in enumerate(results) if result.tokens and request.embeddings]
            texts = [prompt_of(window[place]) + window[place].response for place in wanted]
            longest = max((results[place].tokens for place in wanted), default=1)
            vectors = self._model.encode(
                texts,
                batch_size=max(1, self._batch_tokens // longest),
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            for place, vector in zip(wanted, vectors, strict=True):
                if np.isfinite(vector).all():
                    results[place].embeddings["text"] = np.asarray(vector, dtype=np.float32)
                else:
                    results[place].flags.append(NON_FINITE)
            if progress is not None:
                progress(len(results))
            yield results


def describe_text(tokenizer: Any, max_length: int, sample: Sample, position: int = 0) -> SampleSignals:
    """Return a sample's token counts and flags for an embedding model; zero tokens if it cannot be embedded."""
    result = SampleSignals(sample.sample_id, position)
    if sample.images:
        result.flags.append("images_not_supported")
    elif not sample.response.strip():
        result.flags.append("empty_response")
    if result.flags:
        return result
    prompt = prompt_of(sample)
    offsets = tokenizer(prompt + sample.response, return_offsets_mapping=True, truncation=False, verbose=False)[
        "offset_mapping"
    ]
    specials = tokenizer.num_special_tokens_to_add()
    words = [start for start, end in offsets if end > start]
    kept = min(len(words), max_length - specials)
    result.tokens = kept + specials
    result.prompt_tokens = sum(start < len(prompt) for start in words[:kept])
    result.response_tokens = kept - result.prompt_tokens
    if kept < len(words):
        result.flags.append("response_truncated" if result.response_tokens else "prompt_too_long")
    if not result.response_tokens:
        result.tokens = 0
    return result


def text_limits(folder: Path, max_length: int | None, trust_remote_code: bool) -> tuple[Any, int]:
    """Return an embedding model's tokenizer and maximum tokens, as the pass uses them, without loading weights.

    Args:
        folder: the sentence-transformers model.
        max_length: the target's own limit, if it has one.
        trust_remote_code: run Python code that the folder ships.
    """
    from transformers import AutoTokenizer

    modules = folder / "modules.json"
    first = folder / str(json.loads(modules.read_text())[0]["path"]) if modules.is_file() else folder
    tokenizer = AutoTokenizer.from_pretrained(first, trust_remote_code=trust_remote_code)
    settings = first / "sentence_bert_config.json"
    longest = json.loads(settings.read_text()).get("max_seq_length") if settings.is_file() else None
    if longest is None:
        config = load_config(first, trust_remote_code)
        longest = min(
            getattr(config, "max_position_embeddings", tokenizer.model_max_length), tokenizer.model_max_length
        )
    return tokenizer, _length_limit(int(longest), max_length)


def _length_limit(longest: int, asked: int | None) -> int:
    return longest if asked is None else min(asked, longest)


def prompt_of(sample: Sample) -> str:
    """Return the prompt's turns, one per line, up to where the response starts."""
    return "".join(turn_text(turn) + "\n" for turn in sample.messages)


def refuse_pickled_modules(folder: Path) -> None:
    """Check that all modules of the model (dense layers and the like) have safetensors weights.

    Raises:
        ModelError: a module has only pickled weights, which are never loaded.
    """
    for pickled in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ModelError(
                f"{pickled} contains pickled weights, which are never loaded. Save the model again with "
                "model.save(folder, safe_serialization=True)."
            )
