"""Model folders on disk: finding them, refusing unusable ones before any work, and hashing their content.

Torch-free, because the Dagster code server asks for fingerprints every half minute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curation_resources.errors import UserError
from curation_resources.scoring.gradient_spec import OPTIMIZER
from curation_resources.storage.digests import DigestCache, digest

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# What a vision-language model's folder has beside them: how images become tensors, and its own chat template.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "chat_template.json")
CLASSIFIER = "ForSequenceClassification"
INDEX_FILE = "model.safetensors.index.json"
# Keys of config.json that say who wrote it, not what the model computes.
VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")


class ModelError(UserError):
    """A model cannot be used; the message names the folder and the mend."""


def resolve_model(model: str, revision: str | None, base_folder: Path, download: bool = True) -> Path:
    """The folder of a model: a path (relative to `base_folder`), or a hub id's snapshot.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit of a hub id.
        base_folder: what a relative folder is relative to: where curation.yaml lies.
        download: fetch the snapshot if it is not in the local cache.

    Raises:
        ModelError: there is no such folder, and no such snapshot can be had.
    """
    try:
        folder = (base_folder / Path(model).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"model {model!r} is no path ({error}): correct targets.model in curation.yaml") from error
    if model and folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model folder {folder} does not exist: correct targets.model in curation.yaml")
    # Slow to import, and of no use where the model is a folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
    try:
        cached = Path(snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=patterns))
        # Whoever read only the tokenizer has left a snapshot without weights.
        if not download or _is_complete(cached):
            return cached
    except HFValidationError as error:
        raise ModelError(
            f"model {model!r} is neither a folder ({folder}) nor a hub id: correct targets.model in curation.yaml"
        ) from error
    except LocalEntryNotFoundError:
        if not download:
            raise ModelError(
                f"model {model!r} is neither a folder ({folder}) nor in the local hub cache: "
                "correct targets.model, or let `curate run` download it"
            ) from None
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"model {model!r} is neither a folder ({folder}) nor can it be fetched from the hub ({error}): "
            "correct targets.model in curation.yaml, or download it first"
        ) from error


def check_model_folder(folder: Path) -> None:
    """Refuse a model folder that loading would fail on, or should.

    Raises:
        ModelError: no config.json, no safetensors (pickled weights are never loaded), or no fast tokenizer.
    """
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist: correct targets.model in curation.yaml")
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {folder} has no config.json: it is not a transformers model")
    _read_json_object(folder / "config.json")
    if not weight_files(folder):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        if pickled:
            raise ModelError(
                f"model folder {folder} has only pickled weights ({', '.join(pickled)}), which are never "
                "loaded: convert them with save_pretrained(..., safe_serialization=True)"
            )
        raise ModelError(f"model folder {folder} has no .safetensors weights")
    absent = _absent_weights(folder)
    if absent:
        raise ModelError(
            f"model folder {folder} lacks weights that its index names ({', '.join(absent)}): copy or download it again"
        )
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"model folder {folder} has no tokenizer.json: segments are found by character offsets, which "
            "need a fast tokenizer; save one with tokenizer.save_pretrained(folder)"
        )


def check_weights(folder: Path) -> None:
    """Read the headers of a folder's weights, which name every tensor and where it ends.

    Raises:
        ModelError: a file is cut short or is no safetensors file; its name is in the message.
    """
    # Only who looks for damage reads weights here.
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged or cut short ({error}): copy or download it again") from error


def check_kind(folder: Path, kind: str) -> None:
    """See that a folder is of the kind of model that a target's signals take, as far as its configuration says.

    Args:
        folder: of the model.
        kind: `reward`, or another, which may be anything.

    Raises:
        ModelError: it is a language model and is to be a reward model.
    """
    config = _read_json_object(folder / "config.json")
    said = [str(name) for name in config.get("architectures") or []]
    own_code = "AutoModelForSequenceClassification" in (config.get("auto_map") or {})
    if kind == "reward" and said and not own_code and not any(name.endswith(CLASSIFIER) for name in said):
        raise ModelError(
            f"{folder} is a {', '.join(said)}, and no reward model: name the folder of one (its architecture ends in "
            f"{CLASSIFIER})"
        )


def _is_complete(folder: Path) -> bool:
    try:
        check_model_folder(folder)
    except ModelError:
        return False
    return True


def _absent_weights(folder: Path) -> list[str]:
    """Files that the index of sharded weights names and that are not there."""
    return [name for name in _named_weights(folder) if not (folder / name).is_file()]


def _named_weights(folder: Path) -> list[str]:
    """Files that the index of sharded weights names, sorted; empty if there is no index."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return []
    return sorted({str(name) for name in _read_json_object(index).get("weight_map", {}).values()})


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}): copy or download the model again") from error
    if not isinstance(document, dict):
        raise ModelError(f"{file} is not a JSON object: copy or download the model again")
    return document


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model or adapter folder: those in it and those that its index names.

    Raises:
        ModelError: the index leads out of the folder.
    """
    named = _named_weights(folder)
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in named):
        raise ModelError(f"model folder {folder}: {INDEX_FILE} leads out of the folder")
    found = {*folder.glob("*.safetensors"), *(folder / name for name in named if (folder / name).is_file())}
    # What Adam remembers lies beside the weights, and is none.
    return sorted(file for file in found if file.name != OPTIMIZER)


def weights_digest(folder: Path, cache: DigestCache) -> str:
    """Hash of what a model computes: its config (less who wrote it), its weights' bytes, and code that it ships."""
    config = _read_json_object(folder / "config.json")
    config = {key: value for key, value in config.items() if key not in VOLATILE_CONFIG}
    weights = [cache.file_digest(path) for path in weight_files(folder)]
    # Only a config with an auto_map makes transformers run the folder's own code.
    code = sorted(folder.glob("*.py")) if "auto_map" in config else []
    shipped = {path.name: cache.file_digest(path) for path in code}
    cache.save()
    return digest("weights", config, weights, shipped)


def modules_digest(folder: Path, cache: DigestCache) -> str:
    """Hash of what a sentence-transformers model does with the transformer's output: its modules, their weights."""
    own = {folder / "config.json", *(folder / name for name in TOKENIZER_FILES), *weight_files(folder)}
    files = sorted({*folder.rglob("*.json"), *folder.rglob("*.safetensors")} - own)
    found = {path.relative_to(folder).as_posix(): cache.file_digest(path) for path in files}
    cache.save()
    return digest("modules", found)


def adapter_digest(folder: Path, cache: DigestCache) -> str:
    """Hash of a LoRA adapter: the settings that scale it, and its weights' bytes."""
    config = json.loads((folder / "adapter_config.json").read_text())
    settings = {key: config.get(key) for key in ("r", "lora_alpha", "use_rslora", "target_modules")}
    settings["target_modules"] = sorted(settings["target_modules"] or [])
    weights = [cache.file_digest(path) for path in weight_files(folder)]
    cache.save()
    return digest("adapter", settings, weights)


def tokenizer_digest(folder: Path, cache: DigestCache) -> str:
    """Hash of every file that says how text becomes tokens, chat template included."""
    files = {name: cache.file_digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    cache.save()
    return digest("tokenizer", files)


def processor_digest(folder: Path, cache: DigestCache) -> str | None:
    """Hash of every file that says how images become what the model sees; None for a model that reads text."""
    files = {name: cache.file_digest(folder / name) for name in PROCESSOR_FILES if (folder / name).is_file()}
    if "vision_config" not in _read_json_object(folder / "config.json") or not files:
        return None
    cache.save()
    return digest("processor", files)
