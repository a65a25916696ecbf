"""Is the audit right, silent where there is nothing, and cheap? On the demo's corpus and model.

    python -m tests.benchmarks.audit

- The demo labels its own flaws. AUROC of GRACE by these labels stands beside that of the audit's own twins, which are
  made of sound samples; the kinds differ in detail (docs/demo.md).
- Sound and flawed are exchanged at random within pairs, in every cell, many times: the intervals have to hold .5.
- A second audit measures nothing.
- Measuring the audit's samples takes as much processor time as measuring them in a run; the two sides alternate.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from curation_assets.config.evaluation_settings import Audit
from curation_assets.defs.main_job import MainJob
from curation_assets.demo.tour import CLEAN, prepare
from curation_assets.evaluation.audit import audit_scores, audit_stores, measure_audit
from curation_assets.evaluation.audit_report import codes, pairs_of, write_audit
from curation_assets.evaluation.audit_samples import ORIGINAL, kinds_of, write_audit_samples
from curation_assets.evaluation.concordance import Estimate, concordance, win_rate
from curation_assets.signals.measure import measure_shards
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.audit import AUDIT
from curation_assets.workspace.limits import Allowance
from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.common import alternate_clocks, finish, parser, ratios, table

SAME = {"wrong_step": "wrong_number", "wrong_answer": "wrong_answer", "irrelevant": "irrelevant_step"}
SAME |= {"shuffled": "shuffled_steps", "repeated": "repeated_step"}
"""The demo's kinds of flaws, and the audit's."""
LEAST_CELLS = 200
SCORES = """\
  - {name: grape, target: tiny, method: grape}
  - {name: mean_entropy, target: tiny, method: mean_entropy}
"""


def demo(folder: Path) -> Workspace:
    """The demo, whose labels say which rows are right, with likelihoods as well; measured by a run."""
    config = prepare(folder)
    text = config.read_text().replace("step_gradients]", "step_gradients, likelihoods]")
    config.write_text(text.replace("scores:\n", f"scores:\n{SCORES}", 1))
    for path in sorted((folder / "landing").iterdir()):
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            marked = [row | {"correct": row["labels"]["flaw"] == CLEAN} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in marked))
        else:
            # Their rows would have no mark.
            path.unlink()
    workspace = Workspace.load(config)
    with dg.DagsterInstance.ephemeral() as instance:
        MainJob(workspace, instance).run()
    return workspace


def by_labels(workspace: Workspace) -> dict[str, Estimate]:
    """AUROC of GRACE, sound samples against each kind of the demo's own flaws."""
    corpus = read_stored(workspace, "raw_corpus").collect().unique("sample_id")
    flaw = pl.Series("flaw", [json.loads(extra)["labels"]["flaw"] for extra in corpus["extra"]])
    scores = read_stored(workspace, "sample_scores").select("sample_id", "grace").collect().unique("sample_id")
    rows = corpus.select("sample_id", "prompt_id").with_columns(flaw).join(scores, on="sample_id").drop_nulls("grace")
    found = {}
    for kind in SAME:
        own = rows.filter(pl.col("flaw").is_in([CLEAN, kind]))
        label = (own["flaw"] == CLEAN).cast(pl.Float64).to_numpy()
        estimate = concordance(own["grace"].to_numpy(), label, codes(own["prompt_id"]))
        assert estimate is not None
        found[kind] = estimate
    return found


def null_cells(workspace: Workspace, settings: Audit) -> tuple[int, float]:
    """Exchange sound and flawed at random within pairs; gives the number of cells, and the share that holds .5."""
    audited = audit_scores(workspace, settings, Allowance(workspace.settings.limits))
    cells = [
        pairs
        for scores in audited.scores
        for section in scores.sections
        for kind in audited.samples["kind"].unique().sort()
        if kind != ORIGINAL and len(pairs := pairs_of(audited.samples, scores, section, kind)[0]) > 10
    ]
    rng = np.random.default_rng(0)
    held: list[bool] = []
    while len(held) < LEAST_CELLS:
        for pairs in cells:
            sound, twin = pairs["sound"].to_numpy(), pairs["twin"].to_numpy()
            swapped, prompt = rng.random(len(pairs)) < 0.5, codes(pairs["prompt_id"])
            left, right = np.where(swapped, twin, sound), np.where(swapped, sound, twin)
            label = np.repeat([1.0, 0.0], len(pairs))
            both, prompts = np.concatenate([left, right]), np.concatenate([prompt, prompt])
            for estimate in (win_rate(left, right, prompt), concordance(both, label, prompts)):
                assert estimate is not None
                low, high = estimate.interval()
                held.append(low <= 0.5 <= high)
    return len(held), float(np.mean(held))


def cost(workspace: Workspace, settings: Audit, folder: Path, rounds: int) -> dict[str, Any]:
    """CPU time of measuring the audit's samples as an audit does, over that of a run that has them as its corpus."""
    samples = write_audit_samples(workspace, settings).unique("sample_id", maintain_order=True)
    target = workspace.settings.targets[0]
    same = folder / "same"
    (same / "landing").mkdir(parents=True)
    rows = [
        {"prompt": json.loads(messages)[-1]["content"], "response": response, "source": sample_id}
        for messages, response, sample_id in samples.select("messages", "response", "sample_id").iter_rows()
    ]
    shard = same / "landing" / "a.jsonl"
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(shard, (1e9, 1e9))
    shutil.copy(workspace.folder / "curation.yaml", same)
    shutil.copytree(workspace.folder / "model", same / "model")
    shutil.copytree(workspace.folder / "warehouse" / "checkpoints", same / "warehouse" / "checkpoints")
    other = Workspace.load(same / "curation.yaml")
    with dg.DagsterInstance.ephemeral() as instance:
        MainJob(other, instance).run(until="corpus")

    def audit() -> None:
        workspace.warehouse.storage.remove_folder(f"{AUDIT}signals")
        stores = audit_stores(workspace, target)
        sum(measure_audit(workspace, target, samples, stores, Allowance(workspace.settings.limits)))

    def run() -> None:
        other.warehouse.storage.remove_folder("signals")
        for _ in measure_shards(other, other.settings.targets[0], ["a.jsonl"], target.signals):
            pass

    clocks = alternate_clocks({"audit": audit, "run": run}, rounds)
    return ratios("seconds_share", clocks["audit"], clocks["run"])


def main() -> None:
    """Print the tables and the JSON line."""
    options = parser(__doc__).parse_args()
    settings = Audit(samples=20 if options.small else 100)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        workspace = demo(folder / "demo")
        made = write_audit(workspace, settings)
        second = write_audit(workspace, settings)
        labelled = by_labels(workspace)
        grace = made.table.filter((pl.col("score") == "grace") & (pl.col("measure") == "auroc"))
        own = {row["kind"]: row for row in grace.iter_rows(named=True) if row["kind"] in kinds_of(settings)}
        lines, equal = [], {}
        for kind, name in SAME.items():
            low, high = labelled[kind].interval()
            twin = own[name]
            equal[name] = bool(twin["low"] <= high and low <= twin["high"])
            lines.append(
                (
                    name,
                    f"{twin['value']:.2f} [{twin['low']:.2f}, {twin['high']:.2f}]",
                    f"{labelled[kind].value:.2f} [{low:.2f}, {high:.2f}]",
                    equal[name],
                )
            )
        print(table(("kind", "AUROC of the audit", "of the demo's labels", "intervals overlap"), lines))
        cells, share = null_cells(workspace, settings)
        result = {
            "kinds": len(own),
            "auroc_by_kind": {kind: row["value"] for kind, row in own.items()},
            "auroc_by_label": {name: labelled[kind].value for kind, name in SAME.items()},
            "intervals_overlap": equal,
            "null_cells": cells,
            "null_share": round(share, 3),
            "null_covers_half": share >= 0.9,
            "tokens_audit": made.tokens,
            "tokens_second_audit": second.tokens,
            **cost(workspace, settings, folder, options.rounds),
        }
    finish("audit", result, options)


if __name__ == "__main__":
    main()
