"""Load the configuration and all weights of a model folder, and reject folders with missing or damaged weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from curation_resources.scoring.errors import ScoringError

SHOWN = 5


class LoadingError(ScoringError):
    """A model folder cannot be loaded for measuring."""


def load_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the transformers configuration of a model folder, without loading weights.

    Raises:
        LoadingError: this version of transformers does not know the architecture, or cannot read the configuration.
    """
    # Slow to import, and not needed by what only loads weights.
    from transformers import AutoConfig, __version__  # noqa: PLC0415

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise LoadingError(f"the model needs a package that is not installed. Install it: {error}") from error
    except (ValueError, LookupError, OSError, TypeError, AttributeError) as error:
        name = _model_type(folder)
        if name is not None and "model type" in str(error):
            raise LoadingError(
                f"transformers {__version__} does not know the architecture {name!r} of the model in {folder}. Upgrade "
                "transformers, correct model_type in its config.json, or name another model in targets.model."
            ) from error
        reason = str(error).partition("\n")[0]
        raise LoadingError(
            f"config.json of the model in {folder} cannot be used ({reason}). Copy or download the model again."
        ) from error


def _model_type(folder: Path) -> str | None:
    """Return the architecture that a folder's config.json names."""
    try:
        found = json.loads((Path(folder) / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def non_finite_weight(model: Any) -> str | None:
    """Return the name of a weight that contains NaN or Infinity; None if there is none. It reads all weights."""
    return next((name for name, weight in model.named_parameters() if not weight.detach().isfinite().all()), None)


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
