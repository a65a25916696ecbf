"""The Dagster instance of a configuration: our settings, those that a user edits, and no capture of logs."""

from __future__ import annotations

from pathlib import Path

from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

from curation_assets.defs.instance import open_instance
from tests.pipeline.workspaces import make_workspace, rows


def test_runs_print_to_the_terminal_and_other_settings_stay(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    with open_instance(workspace) as instance:
        home = Path(instance.root_directory)
        assert isinstance(instance.compute_log_manager, NoOpComputeLogManager)
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
    settings = home / "dagster.yaml"
    before = settings.read_text() + "retention:\n  schedule:\n    purge_after_days: 3\n"
    settings.write_text(before)
    with open_instance(workspace) as instance:
        assert instance.get_settings("retention")["schedule"]["purge_after_days"] == 3
        assert isinstance(instance.compute_log_manager, NoOpComputeLogManager)
    # The file that the UI reads is the user's own.
    assert settings.read_text() == before
    assert sorted(path.name for path in home.glob("*.yaml")) == ["dagster.yaml"]
