"""Load all weights of a model folder or an adapter, and reject folders with missing weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from curation_resources.scoring.errors import ScoringError

SHOWN = 5


class LoadingError(ScoringError):
    """A model folder cannot be loaded for measuring."""


def load_whole(loader: Any, folder: Path, kind: str, **settings: Any) -> tuple[Any, set[str]]:
    """Load a model with all its weights, safetensors only; also return the tensor names that the model does not have.

    transformers initializes missing weights randomly and continues, for example the head of a reward model from a
    causal
    language model's folder.

    Args:
        loader: one of transformers' auto classes.
        folder: the model folder.
        kind: description of the expected model, for errors: `a reward model`.
        settings: arguments of `from_pretrained`.

    Raises:
        LoadingError: weights are missing, a file is damaged, or a package is not installed.
    """
    try:
        model, found = loader.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **settings)
    except ImportError as error:
        raise LoadingError(f"the model needs a package that is not installed. Install it: {error}") from error
    except (RuntimeError, OSError, SafetensorError, ValueError, LookupError) as error:
        raise LoadingError(
            f"the model in {folder} cannot be loaded ({error}). If files are missing or truncated, copy or download it "
            "again."
        ) from error
    if found["missing_keys"]:
        architecture = ", ".join(getattr(model.config, "architectures", None) or ["model of unknown architecture"])
        raise LoadingError(
            f"{folder} lacks weights of {kind}, which would be random: {some(found['missing_keys'])}. It is a "
            f"{architecture}: name the folder of {kind} with all its weights"
        )
    return model, set(found["unexpected_keys"])


def some(names: Iterable[str]) -> str:
    """Return the first few names, sorted, with the number of further ones."""
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "nothing") + more
