"""Model folders on disk: resolve them, reject unusable ones before any work starts, and hash their content.

Free of torch, because the Dagster code server computes fingerprints every 30 seconds.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from curation_resources.errors import UserError
from curation_resources.scoring.gradient_spec import OPTIMIZER
from curation_resources.scoring.tags import OPENED_THOUGHT
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
# Additional files of a vision-language model: image preprocessing and its own chat template.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "chat_template.json")
ADAPTER_SETTINGS = "adapter_config.json"
CLASSIFIER = "ForSequenceClassification"
INDEX_FILE = "model.safetensors.index.json"
# Keys of config.json that record who wrote it and do not affect what the model computes.
VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")


class ModelError(UserError):
    """A model cannot be used; the message names the folder and the fix."""


def resolve_model(model: str, revision: str | None, base_folder: Path, download: bool = True) -> Path:
    """Return the folder of a model: a path (relative to `base_folder`), or the snapshot of a hub id.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit of a hub id.
        base_folder: folder of curation.yaml, which relative paths start from.
        download: fetch the snapshot if it is not in the local cache.

    Raises:
        ModelError: there is no such folder, and the snapshot is not available.
    """
    try:
        folder = (base_folder / Path(model).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"model {model!r} is not a valid path ({error}). Correct targets.model in curation.yaml."
        ) from error
    if model and folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model folder {folder} does not exist. Correct targets.model in curation.yaml.")
    # Slow to import, and not needed for a local folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
    try:
        cached = Path(snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=patterns))
        # A process that read only the tokenizer leaves a snapshot without weights.
        if not download or _is_complete(cached):
            return cached
    except HFValidationError as error:
        raise ModelError(
            f"model {model!r} is neither a folder ({folder}) nor a hub id. Correct targets.model in curation.yaml."
        ) from error
    except LocalEntryNotFoundError:
        if not download:
            raise ModelError(
                f"model {model!r} is neither a folder ({folder}) nor in the local hub cache. "
                "Correct targets.model, or let `curate run` download it."
            ) from None
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"model {model!r} is neither a folder ({folder}) nor available from the hub ({error}). "
            "Correct targets.model in curation.yaml, or download the model first."
        ) from error


def check_model_folder(folder: Path) -> None:
    """Reject a model folder that cannot or must not be loaded.

    Raises:
        ModelError: no config.json, no safetensors (pickled weights are never loaded), or no fast tokenizer.
    """
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist. Correct targets.model in curation.yaml.")
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_SETTINGS).is_file():
            base = _read_json_object(folder / ADAPTER_SETTINGS).get("base_model_name_or_path") or "a base model"
            raise ModelError(
                f"model folder {folder} holds a LoRA adapter of {base}, not a whole model. Name {base} in "
                "targets.model, or merge the adapter into it (merge_and_unload of peft) and name the merged folder."
            )
        raise ModelError(
            f"model folder {folder} has no config.json. Name a transformers model folder in targets.model."
        )
    _read_json_object(folder / "config.json")
    if not weight_files(folder):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        if pickled:
            raise ModelError(
                f"model folder {folder} has only pickled weights ({', '.join(pickled)}), which are never "
                "loaded. Convert them with save_pretrained(..., safe_serialization=True)."
            )
        raise ModelError(f"model folder {folder} has no .safetensors weights. Copy or download it again.")
    absent = _absent_weights(folder)
    if absent:
        raise ModelError(
            f"model folder {folder} lacks weights that its index names ({', '.join(absent)}). "
            "Copy or download it again."
        )
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"model folder {folder} has no tokenizer.json: segments are found by character offsets, which "
            "need a fast tokenizer. Save one with tokenizer.save_pretrained(folder)."
        )


def check_weights(folder: Path) -> None:
    """Validate the headers of a folder's weights, which list every tensor and its end offset.

    Raises:
        ModelError: a file is truncated or is not a safetensors file; the message names it.
    """
    # Only the search for damage reads weights here.
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged or truncated ({error}). Copy or download it again.") from error


def check_kind(folder: Path, kind: str) -> None:
    """Check that a model folder matches its target's kind, as far as its configuration tells.

    Args:
        folder: of the model.
        kind: `reward`, or another kind, which is not checked.

    Raises:
        ModelError: a language model is used as a reward model.
    """
    config = _read_json_object(folder / "config.json")
    names = [str(name) for name in config.get("architectures") or []]
    own_code = "AutoModelForSequenceClassification" in (config.get("auto_map") or {})
    if kind == "reward" and names and not own_code and not any(name.endswith(CLASSIFIER) for name in names):
        raise ModelError(
            f"{folder} is a {', '.join(names)}, not a reward model. Name the folder of a reward model (its "
            f"architecture ends in {CLASSIFIER})."
        )


def _is_complete(folder: Path) -> bool:
    try:
        check_model_folder(folder)
    except ModelError:
        return False
    return True


def _absent_weights(folder: Path) -> list[str]:
    """Return the files that the index of sharded weights names but that do not exist."""
    return [name for name in _named_weights(folder) if not (folder / name).is_file()]


def _named_weights(folder: Path) -> list[str]:
    """Return the files that the index of sharded weights names, sorted; empty without an index."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return []
    return sorted({str(name) for name in _read_json_object(index).get("weight_map", {}).values()})


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON ({error}). Copy or download the model again.") from error
    if not isinstance(document, dict):
        raise ModelError(f"{file} is not a JSON object. Copy or download the model again.")
    return document


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model or adapter folder: those in it and those that its index names.

    Raises:
        ModelError: the index names a path outside the folder.
    """
    named = _named_weights(folder)
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in named):
        raise ModelError(
            f"model folder {folder}: {INDEX_FILE} names a path outside the folder. Copy or download it again."
        )
    found = {*folder.glob("*.safetensors"), *(folder / name for name in named if (folder / name).is_file())}
    # Adam's moments lie beside the weights, but are not part of them.
    return sorted(file for file in found if file.name != OPTIMIZER)


def weights_digest(folder: Path, cache: DigestCache) -> str:
    """Return the hash of a model's config (without volatile keys), its weights' bytes, and the code that it ships."""
    config = _read_json_object(folder / "config.json")
    config = {key: value for key, value in config.items() if key not in VOLATILE_CONFIG}
    weights = [cache.file_digest(path) for path in weight_files(folder)]
    # Only a config with an auto_map makes transformers run the folder's own code.
    code = sorted(folder.glob("*.py")) if "auto_map" in config else []
    shipped = {path.name: cache.file_digest(path) for path in code}
    cache.save()
    return digest("weights", config, weights, shipped)


def modules_digest(folder: Path, cache: DigestCache) -> str:
    """Return the hash of the modules that a sentence-transformers model adds to the transformer, with their weights."""
    own = {folder / "config.json", *(folder / name for name in TOKENIZER_FILES), *weight_files(folder)}
    files = sorted({*folder.rglob("*.json"), *folder.rglob("*.safetensors")} - own)
    found = {path.relative_to(folder).as_posix(): cache.file_digest(path) for path in files}
    cache.save()
    return digest("modules", found)


def adapter_digest(folder: Path, cache: DigestCache) -> str:
    """Return the hash of a LoRA adapter: the settings that scale it, and its weights' bytes."""
    config = json.loads((folder / ADAPTER_SETTINGS).read_text())
    settings = {key: config.get(key) for key in ("r", "lora_alpha", "use_rslora", "target_modules")}
    settings["target_modules"] = sorted(settings["target_modules"] or [])
    weights = [cache.file_digest(path) for path in weight_files(folder)]
    cache.save()
    return digest("adapter", settings, weights)


def tokenizer_digest(folder: Path, cache: DigestCache) -> str:
    """Return the hash of all files that define tokenization, chat template included."""
    files = {name: cache.file_digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    cache.save()
    return digest("tokenizer", files)


def opens_thought(folder: Path, cache: DigestCache) -> bool:
    """Return whether a model's chat template ends the prompt of a plain question with an opened thought (`<think>`).

    Responses that begin with the same tag are measured with one of the two (`scoring.encoding`), so measurements from
    before that was so are not valid for such a model.
    """
    names = (*TOKENIZER_FILES, *PROCESSOR_FILES)
    found = {name: cache.file_digest(folder / name) for name in names if (folder / name).is_file()}
    return _opens_thought(folder, digest("templates", found))


@lru_cache(maxsize=64)
def _opens_thought(folder: Path, _content: str) -> bool:
    text = _chat_template(folder)
    if text is None or "think" not in text.lower():
        return False
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    asked = [{"role": "user", "content": "probe"}]
    try:
        prompt = environment.from_string(text).render(messages=asked, add_generation_prompt=True)
    except (TemplateError, TypeError):
        # It needs more than the standard environment has, such as transformers' tag `generation`.
        return False
    return OPENED_THOUGHT.search(prompt) is not None


def _chat_template(folder: Path) -> str | None:
    """Return a model's chat template as its files state it: the processor's, its own file, or the tokenizer's."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        if name == "tokenizer_config.json" and (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        stated = _read_json_object(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(stated, list):
            named = {one.get("name"): one.get("template") for one in stated if isinstance(one, dict)}
            stated = named.get("default")
        if isinstance(stated, str):
            return stated
    return None


def processor_digest(folder: Path, cache: DigestCache) -> str | None:
    """Return the hash of all files that define image preprocessing; None for a text-only model."""
    files = {name: cache.file_digest(folder / name) for name in PROCESSOR_FILES if (folder / name).is_file()}
    if "vision_config" not in _read_json_object(folder / "config.json") or not files:
        return None
    cache.save()
    return digest("processor", files)
