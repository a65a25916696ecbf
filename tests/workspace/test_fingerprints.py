"""What each fingerprint depends on, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation_assets.config.settings import Settings
from curation_assets.subsets.select import SELECTION_VERSION, parameters_digest, selector_of
from curation_assets.tables.signals import ALONG_A_RUN
from curation_assets.workspace.fingerprints import (
    corpus_fingerprint,
    image_limits_key,
    scores_key,
    segmentation_key,
    signal_fingerprint,
    warmup_key,
)
from curation_assets.workspace.versions import SIGNAL_VERSIONS
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest
from tests.models import write_tiny_qwen3_vl
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
        "limits": image_limits_key(workspace, target),
        **{name: signal_fingerprint(workspace, target, name) for name in SIGNAL_VERSIONS},
        "scores": scores_key(workspace, target),
        "subset": parameters_digest(workspace, subset),
    }


def test_a_subset_of_an_earlier_version_stays_valid(base: Workspace) -> None:
    (subset,) = base.settings.subsets
    earlier = subset.model_dump(mode="json")
    assert earlier.pop("standardise") is None
    assert earlier.pop("from") is None
    assert earlier["filters"].pop("scores") == []
    section = selector_of(base, subset).model_dump(mode="json")
    min_steps = base.settings.score_of(subset).min_steps
    assert parameters_digest(base, subset) == digest("subset", SELECTION_VERSION, earlier, section, min_steps)


# These rest on a training run, of which there is none here: tests/pipeline/test_trajectories.py, test_temp.py.
SIGNALS = set(SIGNAL_VERSIONS) - {*ALONG_A_RUN, "in_run_influence", "perturbed_losses"}
SEGMENTED = {"segmentation", "step_gradients", "segment_likelihoods", "process_rewards", "attention_influence"}


@pytest.mark.parametrize(
    ("path", "value", "affected"),
    [
        ("corpus.format", "messages", {"corpus"}),
        ("corpus.max_row_bytes", 5000, {"corpus"}),
        ("corpus.columns.prompt", "question", {"corpus"}),
        ("corpus.segmentation.strategy", "lines", SEGMENTED),
        ("corpus.segmentation.max_steps", 8, SEGMENTED),
        ("targets.0.template", "plain", SIGNALS - {"rewards", "process_rewards"}),
        ("targets.0.max_length", 64, SIGNALS),
        ("targets.0.dtype", "bfloat16", SIGNALS),
        ("targets.0.proxy", "lm_head", {"step_gradients"}),
        ("targets.0.attention_influence", {"seed": 1}, {"attention_influence"}),
        ("targets.0.gradients", {"weights": "layers"}, set()),
        ("targets.0.gradients", {"projection": 8}, {"gradient_features"}),
        ("targets.0.gradients", {"dimension": 4096}, {"gradient_features"}),
        ("targets.0.gradients", {"seed": 1}, {"gradient_features"}),
        ("targets.0.gradients", {"parity": "as_coded"}, {"gradient_spectra"}),
        ("targets.0.signals", ["step_gradients", "likelihoods"], set()),
        ("corpus.images.max_pixels", 100, set()),
        ("corpus.images.fetch_remote", True, set()),
        ("scores.0.alpha", 0.1, {"scores"}),
        ("scores.0.history", {"window": 2, "ema": None}, {"scores"}),
        ("scores.0.min_steps", 5, {"subset"}),
        ("subsets.0.budget", {"fraction": 0.1, "samples": None, "tokens": None}, {"subset"}),
        ("engine.batch_tokens", 100, set()),
        ("engine.device", "cuda", set()),
        ("engine.attention", "eager", set()),
        ("engine.compile", True, set()),
        ("engine.head_memory_mib", 8, set()),
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
        ("preset", "less", True),
        ("adapter", "full", True),
        ("adapter", "lora", False),
        ("lora_rank", 8, False),
        ("save_every", 5, True),
        ("save_every", "epoch", True),
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


def test_losses_before_a_training_run_do_not_depend_on_it(base: Workspace) -> None:
    trained = changed(base, "targets.0.warmup", {})
    assert prints(trained)["base_likelihoods"] == prints(base)["base_likelihoods"]
    assert prints(trained)["likelihoods"] is None  # there is no such run yet


def test_every_signal_has_a_fingerprint_of_its_own(base: Workspace) -> None:
    found = prints(base)
    assert len({found[name] for name in SIGNALS}) == len(SIGNALS)


def test_images_count_for_models_that_see_them(tmp_path: Path) -> None:
    model = write_tiny_qwen3_vl(tmp_path / "model")
    workspace = make_workspace(tmp_path / "w", model, {"a.jsonl": rows(2)})
    before = prints(workspace)
    # Other limits are another question to samples that they keep closed, not another measurement.
    limits = prints(changed(workspace, "corpus.images.max_pixels", 100))
    assert {name for name in before if before[name] != limits[name]} == {"limits"}
    warm = changed(workspace, "targets.0.warmup", {})
    key = warmup_key(warm, warm.settings.targets[0])
    file = model / "processor_config.json"
    file.write_text(file.read_text().replace("0.5", "0.4") + "\n")
    after = prints(changed(workspace, "engine.batch_tokens", 100))
    assert {name for name in before if before[name] != after[name]} == SIGNALS
    # A processor may bring the chat template that the warm-up is trained with.
    again = changed(workspace, "targets.0.warmup", {})
    assert warmup_key(again, again.settings.targets[0]) != key
