"""Loading all weights of a model folder, or an adapter's, and refusing what would be filled with random numbers."""

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
    """A model of whose weights none is missing, safetensors only, and the names in its files that it does not have.

    transformers fills weights that a folder lacks with random numbers and goes on: the head of a reward model of a
    causal language model's folder, say.

    Args:
        loader: one of transformers' auto classes.
        folder: the model folder.
        kind: what it is loaded as, for errors: `a reward model`.
        settings: of `from_pretrained`.

    Raises:
        LoadingError: weights are missing, a file is damaged, or a package is not installed.
    """
    try:
        model, found = loader.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **settings)
    except ImportError as error:
        raise LoadingError(f"the model needs a package that is not installed: {error}") from error
    except (RuntimeError, OSError, SafetensorError, ValueError, LookupError) as error:
        raise LoadingError(
            f"the model in {folder} cannot be loaded ({error}): if it is not whole, copy or download it again"
        ) from error
    if found["missing_keys"]:
        said = ", ".join(getattr(model.config, "architectures", None) or ["model that does not say what it is"])
        raise LoadingError(
            f"{folder} lacks weights of {kind}, which would be random numbers: {some(found['missing_keys'])}. It is a "
            f"{said}: name the folder of {kind} that holds all its weights"
        )
    return model, set(found["unexpected_keys"])


def some(names: Iterable[str]) -> str:
    """The first few of some names, sorted, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "nothing") + more
