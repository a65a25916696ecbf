"""Every benchmark runs and ends with the JSON line that it promises; what it measures here means nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.common import median_ratio

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]

KEYS = {
    "audit": {"kinds", "auroc_by_kind", "null_covers_half", "tokens_second_audit", "seconds_share"},
    "scale": {"ray_over_local", "remeasured_share_after_kill", "simulated_busy_share_1000"},
    "at_scale": {
        "run_seconds_per_shard",
        "run_seconds_per_sample",
        "run_seconds_per_unit",
        "seconds_per_partition",
        "requests_per_shard",
        "bytes_per_sample",
        "release_seconds_per_row",
        "index_bytes_per_sample",
        "simulated",
    },
    "forward": {
        "ratio_all_signals",
        "ratio_grace",
        "speedup_over_padded_8",
        "speedup_over_padded_32",
        "padding_fraction",
    },
    "memory": {"extra_gib_v1k_t128"},
    "scaling": {"steps_200_over_8", "tokens_per_second_by_length"},
    "selection": {
        "what_if_over_read",
        "what_if_peak_gib",
        "select_over_sort",
        "grape_over_duckdb",
        "k_center_speedup",
        "round_robin_speedup",
    },
    "recipes": {
        "facility_speedup",
        "facility_100k_seconds",
        "facility_100k_gib",
        "facility_loss_percent_clusters",
    },
    "incremental": {
        "extra_tokens_new",
        "extra_tokens_changed",
        "cost_share_1_percent_new",
        "cost_share_1_percent_changed",
    },
    "ingest": {"share_of_bare_polars", "peak_gib", "overhead_over_bare_dagster"},
    "registering": {"ticks", "slowest_tick_share", "page_ratio"},
    "gpu": {"mfu", "tokens_per_second", "max_relative_error_bf16"},
    "post_training": {"relative_average", "exact_match", "sound", "tokens_trained"},
    "gradients": {"spectra_speedup", "spectra_max_relative_error"},
    "spectra_claims": {"auroc", "length", "runs"},
    "step_gradients": {"demo_bias", "demo_projected"},
    "features": {
        "features_8192_pearson",
        "features_int8_loss",
        "all_signals_over_dearest",
    },
    "temp": {"early_exit_overhead", "eight_checkpoints_ratio", "perturb_restore_over_copy"},
}
NEED_DATA = {"forward", "scaling"}
NEED_BROWSER = {"registering"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_benchmark_ends_with_its_figures(name: str, request: pytest.FixtureRequest) -> None:
    if name in NEED_DATA:
        request.getfixturevalue("real_data")
    if name in NEED_BROWSER and shutil.which("chromium") is None:
        pytest.skip("no Chromium on the PATH: install it (apt-get install chromium)")
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--small", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]).keys() >= KEYS[name]


def test_ratios_are_taken_within_a_round() -> None:
    # The machine slowed down in the second round, for both sides alike.
    assert median_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0
