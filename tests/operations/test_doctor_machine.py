"""`curate doctor` on the machine and the models: what is slow, what cannot be loaded, and how fast it says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from curation_assets.operations import doctor
from curation_assets.operations.doctor import Finding, cpu_flags, examine
from tests.pipeline.workspaces import make_workspace, rows


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    return make_workspace(tmp_path, tmp_path / "model", {"a.jsonl": rows(2)}).config_file


def found(config: Path, what: str) -> list[Finding]:
    return [finding for finding in examine(config) if finding.what == what]


def test_busy_cores_and_threads_that_spin_are_a_warning(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 9.0, 9.0))
    assert not found(config, "OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "getloadavg", lambda: (5.2, 0.0, 0.0))
    (warning,) = found(config, "OMP_WAIT_POLICY")
    assert (warning.ok, warning.warning) == (True, True)
    assert "5.2 processes on average are at work on 2 cores" in warning.found
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert found(config, "OMP_WAIT_POLICY")[0].found.startswith("active, while")
    # A single thread waits for no other.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not found(config, "OMP_WAIT_POLICY")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not found(config, "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("dtype", "flags", "warned"),
    [
        ("bfloat16", {"avx2"}, True),
        ("bfloat16", {"avx2", "avx512_bf16"}, False),
        ("bfloat16", {"amx_tile", "amx_bf16"}, False),
        ("bfloat16", None, False),
        ("float32", {"avx2"}, False),
    ],
)
def test_bfloat16_without_hardware_for_it_is_a_warning(
    config: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, flags: set[str] | None, warned: bool
) -> None:
    config.write_text(config.read_text().replace("warmup: none", f"dtype: {dtype}, warmup: none"))
    monkeypatch.setattr(doctor, "cpu_flags", lambda: flags)
    warnings = found(config, "dtype")
    assert bool(warnings) == warned
    assert all("slower than float32" in warning.found for warning in warnings)


def test_flags_of_a_cpu_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nvmx flags\t: vnmi\n")
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(tmp_path / "x86") == frozenset({"fpu", "avx2", "avx512_bf16"})
    assert cpu_flags(tmp_path / "arm") == frozenset({"fp", "asimd", "bf16"})
    assert cpu_flags(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        ("config.json", "model_type", "qwen99", "does not know the architecture 'qwen99'"),
        ("tokenizer_config.json", "chat_template", "{% for m in messages %}", "not valid Jinja (line 1"),
    ],
)
def test_models_that_could_not_be_loaded_are_wrong(config: Path, file: str, key: str, value: str, words: str) -> None:
    model = config.parent / "model"
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | {key: value}))
    (finding,) = found(config, "model of target tiny")
    assert not finding.ok
    assert words in finding.found


def test_doctor_imports_no_modelling_code(config: Path) -> None:
    """Importing it takes longer than all checks."""
    code = (
        "import sys; from pathlib import Path; from curation_assets.operations.doctor import examine; "
        f"print([f.what for f in examine(Path({str(config)!r})) if not f.ok]); "
        "print([name for name in ('transformers.modeling_utils', 'curation_resources.scoring.loading', 'dagster', "
        "'peft', 'sympy') if name in sys.modules])"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["[]", "[]"]
