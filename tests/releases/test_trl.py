"""Exports in the trainer that they are for: TRL takes them as they are, and learns from the response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest

from curation_assets.releases.export import export_release
from curation_resources.storage.files import FolderStorage
from tests.pipeline.workspaces import make_workspace, release_folder, release_subset, rows, run

IGNORED = -100
"""The label of a token that nothing is learned from."""

trl = pytest.importorskip("trl", reason="TRL is not installed")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    made = make_workspace(tmp_path_factory.mktemp("trained"), tiny_model, {"a.jsonl": rows(12)})
    run(made)
    release_subset(made)
    return release_folder(made)


def trained(release: Path, form: str, folder: Path, model: Path) -> tuple[Any, list[dict[str, Any]]]:
    """TRL's trainer after two steps on an export, and the export's rows."""
    export_release(FolderStorage(release.parent), release.name, form, folder / form)
    path = folder / form / "train.jsonl"
    data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    settings = trl.SFTConfig(
        output_dir=str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        bf16=False,
        max_length=None,
    )
    trainer = trl.SFTTrainer(str(model), args=settings, train_dataset=data)
    trainer.train()
    return trainer, [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ["messages", "prompt-completion"])
def test_trl_learns_from_it(release: Path, tmp_path: Path, tiny_model: Path, form: str) -> None:
    trainer, written = trained(release, form, tmp_path, tiny_model)
    assert trainer.state.global_step == 2
    assert trainer.state.log_history[-1]["train_loss"] > 0
    taken = trainer.train_dataset
    assert len(taken) == len(written)
    tokenizer = trainer.processing_class
    for row, record in zip(taken, written, strict=True):
        text = tokenizer.decode(row["input_ids"])
        response = (record.get("completion") or record["messages"])[-1]["content"]
        assert response in text
        if form == "prompt-completion":
            # The loss is on the response alone.
            learned = [token for token in row["labels"] if token != IGNORED]
            assert response in tokenizer.decode(learned)
            assert record["prompt"][-1]["content"] not in tokenizer.decode(learned)
