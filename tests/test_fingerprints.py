"""What each fingerprint depends on, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation_assets.fingerprints import (
    corpus_fingerprint,
    scores_key,
    segmentation_key,
    step_gradients_fingerprint,
    warmup_key,
)
from curation_assets.settings import Settings
from curation_assets.subsets.select import parameters_digest
from curation_assets.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("prints"), tiny_model, {"a.jsonl": rows(2)})


def changed(base: Workspace, path: str, value: Any) -> Workspace:
    """The workspace with one key of its configuration changed; `targets.0.dtype` is a path."""
    document = base.settings.model_dump(mode="json")
    node: Any = document
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    return Workspace(base.config_file, Settings.model_validate(document), "changed")


def prints(workspace: Workspace) -> dict[str, str | None]:
    target, subset = workspace.settings.targets[0], workspace.settings.subsets[0]
    return {
        "corpus": corpus_fingerprint(workspace, "content"),
        "segmentation": segmentation_key(workspace),
        "signal": step_gradients_fingerprint(workspace, target),
        "scores": scores_key(workspace, target),
        "subset": parameters_digest(workspace, subset),
    }


@pytest.mark.parametrize(
    ("path", "value", "affected"),
    [
        ("corpus.format", "messages", {"corpus"}),
        ("corpus.max_row_bytes", 5000, {"corpus"}),
        ("corpus.columns.prompt", "question", {"corpus"}),
        ("corpus.segmentation.strategy", "lines", {"segmentation", "signal"}),
        ("corpus.segmentation.max_steps", 8, {"segmentation", "signal"}),
        ("targets.0.template", "plain", {"signal"}),
        ("targets.0.max_length", 64, {"signal"}),
        ("targets.0.dtype", "bfloat16", {"signal"}),
        ("scores.0.alpha", 0.1, {"scores"}),
        ("scores.0.history", {"window": 2, "ema": None}, {"scores"}),
        ("scores.0.min_steps", 5, {"subset"}),
        ("subsets.0.budget", {"fraction": 0.1, "samples": None, "tokens": None}, {"subset"}),
        ("engine.batch_tokens", 100, set()),
        ("engine.device", "cuda", set()),
        ("engine.part_seconds", 1.0, set()),
        ("releases.policy", "on_change", set()),
    ],
)
def test_a_setting_changes_what_depends_on_it_and_nothing_else(
    base: Workspace, path: str, value: Any, affected: set[str]
) -> None:
    before, after = prints(base), prints(changed(base, path, value))
    assert {name for name in before if before[name] != after[name]} == affected


@pytest.mark.parametrize(
    ("key", "value", "differs"),
    [
        ("fraction", 0.1, True),
        ("lora_rank", 4, True),
        ("lora_alpha", 16, True),
        ("learning_rate", 1e-3, True),
        ("epochs", 2, True),
        ("warmup_ratio", 0.1, True),
        ("batch_size", 4, True),
        ("seed", 1, True),
        ("min_pool", 7, False),
    ],
)
def test_a_warm_up_is_known_by_its_recipe_and_not_by_when_it_was_trained(
    base: Workspace, key: str, value: Any, differs: bool
) -> None:
    with_warmup = changed(base, "targets.0.warmup", {})
    other = changed(base, "targets.0.warmup", {key: value})
    keys = [warmup_key(w, w.settings.targets[0]) for w in (with_warmup, other)]
    assert (keys[0] != keys[1]) == differs
