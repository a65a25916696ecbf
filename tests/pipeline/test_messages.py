"""What people meet first is a message with a fix, and no traceback."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.cli.command import clear_errors, is_disk_full
from curation_assets.defs import partitions
from curation_assets.defs.partitions import SHARDS, add_partitions
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables import ALL_TABLES
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.warehouse import Warehouse
from tests.pipeline.workspaces import make_workspace, rows, run


def refused(workspace: Workspace, *words: str) -> str:
    """What a command that fails prints."""
    result = CliRunner().invoke(app, [*words, "--config", str(workspace.config_file)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return " ".join(result.output.split())


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path) -> Workspace:
    """A workspace with a model of its own."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return make_workspace(tmp_path, tmp_path / "model", {"a.jsonl": rows(3)})


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_unknown_architecture_is_named(workspace: Workspace) -> None:
    change(workspace.folder / "model" / "config.json", model_type="qwen99")
    for command in ("run", "plan"):
        said = refused(workspace, command)
        assert "does not know the architecture 'qwen99' of the model in" in said
        assert "Upgrade transformers" in said


@pytest.mark.parametrize("warmup", ["none", "{fraction: 1.0, min_pool: 1}"])
def test_weights_that_are_not_numbers_are_named(workspace: Workspace, warmup: str) -> None:
    file = workspace.folder / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = torch.nan
    save_file(weights, file, {"format": "pt"})
    workspace.config_file.write_text(workspace.config_file.read_text().replace("warmup: none", f"warmup: {warmup}"))
    said = refused(workspace, "run")
    assert "layers.1.mlp.up_proj" in said
    assert "contains NaN or Infinity" in said
    assert "Copy or download the model again" in said


def named_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    change(
        folder / "tokenizer_config.json",
        chat_template=[{"name": name, "template": template} for name in ("tool_use", "rag")],
    )


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m['content' }}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (named_templates, "has chat templates named rag, tool_use, but none named default"),
        (broken_template, "chat template is not valid Jinja (line 2:"),
    ],
)
def test_templates_that_cannot_be_used_are_named(
    workspace: Workspace, damage: Callable[[Path], None], words: str
) -> None:
    damage(workspace.folder / "model")
    said = refused(workspace, "run")
    assert words in said
    assert "use template: plain" in said
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace("warmup: none", "template: plain, warmup: none"))
    assert CliRunner().invoke(app, ["run", "--config", str(workspace.config_file)]).exit_code == 0


def test_an_adapter_given_as_a_model_names_its_base(workspace: Workspace) -> None:
    model = workspace.folder / "model"
    shutil.rmtree(model)
    model.mkdir()
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base-7b"}))
    said = refused(workspace, "run")
    assert "holds a LoRA adapter of org/base-7b, not a whole model. Name org/base-7b in targets.model" in said


class EngineError(Exception):
    """What a library in another language raises: the operating system's words in a text."""


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/warehouse/a.parquet"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/data/warehouse/a.parquet"),
        EngineError("I/O error: No space left on device (os error 28)"),
        pl.exceptions.ComputeError("No space left on device (os error 28)"),
        EngineError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_disk_is_a_message(full: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with clear_errors():
            try:
                raise full
            except Exception as error:
                raise RuntimeError("step failed") from error

    with pytest.raises(typer.Exit):
        fail()
    said = capsys.readouterr().err
    assert "no space is left on the device" in said
    assert "Finished work is kept" in said
    assert not is_disk_full(RuntimeError("another"))


def test_a_full_disk_in_a_run_is_a_message(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "segmented_steps/a.parquet")

    monkeypatch.setattr(Warehouse, "write_table", full)
    said = refused(workspace, "run")
    assert "no space is left on the device (segmented_steps/a.parquet)" in said


def test_a_port_in_use_is_refused_before_anything_starts(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    with socket.create_server(("127.0.0.1", 0)) as other:
        said = refused(workspace, "ui", "--port", str(other.getsockname()[1]))
    assert "is in use" in said
    assert "pass another --port" in said
    assert "http://" not in said
    assert not started
    assert not (workspace.folder / ".dagster").exists()
    assert "is not a port" in refused(workspace, "ui", "--port", "99999")


def test_without_its_package_the_ui_prints_no_address(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def find_other(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "dagster_webserver" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_other)
    said = refused(workspace, "ui")
    assert "dagster-webserver, which is not installed" in said
    assert "http://" not in said


def test_more_partitions_than_sqlite_has_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"part-{number}.jsonl" for number in range(250_001)]
    with dg.DagsterInstance.ephemeral() as instance:
        add_partitions(instance, str(SHARDS.name), keys)
        assert len(instance.get_dynamic_partitions(str(SHARDS.name))) == len(keys)
        monkeypatch.setattr(partitions, "PARTITIONS_AT_ONCE", len(keys))
        with pytest.raises(Exception, match="too many SQL variables"):
            add_partitions(instance, "others", keys)


def test_lists_of_segments_have_one_length_and_that_of_steps_says_why_not(tmp_path: Path, tiny_model: Path) -> None:
    without = {"prompt": "Say.", "response": "Words.\nMore words."}
    workspace = make_workspace(
        tmp_path, tiny_model, {"a.jsonl": [*rows(3), without]}, signals=("step_gradients", "segment_likelihoods")
    )
    run(workspace)
    answers = 0
    for table, column in (("step_gradients", "norms"), ("segment_likelihoods", "segment_nll")):
        for steps, tokens, values in (
            read_stored(workspace, table).select("step_indices", "segment_tokens", column).collect().iter_rows()
        ):
            assert len(tokens) in (len(steps), len(steps) + 1)
            answers += len(tokens) - len(steps)
            assert values is None or len(values) == len(tokens)
        columns = ALL_TABLES[table].columns
        assert "the answer, last in the other lists, has none" in columns["step_indices"].meaning
        assert "[K + 1], or [K] if it has none" in columns["segment_tokens"].meaning
    assert answers == 2 * 3
