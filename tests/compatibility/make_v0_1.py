"""The recipe of `v0_1.tar.xz`: a small warehouse and two releases, written by version 0.1 (commit 869e7f9).

Check out that commit, install it, and run there (the demo's corpus and model are part of the package):

    python make_v0_1.py v0_1.tar.xz
"""

from __future__ import annotations

import lzma
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import dagster as dg
from curation_assets.main_job import MainJob

from curation_assets.demo.corpus import write_corpus
from curation_assets.demo.tour import MODEL
from curation_assets.workspace import Workspace

CONFIG = """\
corpus: {landing: ./landing, filters: {repetition: {paper: true}}}
warehouse: ./warehouse
targets:
  - name: tiny
    model: ./model
    warmup: {min_pool: 10, fraction: 0.5}
    signals: [step_gradients, likelihoods, base_likelihoods]
  - name: base
    model: ./model
    warmup: none
    signals: [likelihoods, segment_likelihoods, sequence_likelihoods, token_likelihoods, unconditional_likelihoods,
              embeddings_mean, embeddings_last, embeddings_position_weighted, gradient_norms]
scores:
  - {name: grace, target: tiny, method: grace}
  - {name: learnability, target: tiny, method: learnability}
  - {name: grape, target: base, method: grape}
  - {name: ifd, target: base, method: ifd}
  - {name: grand, target: base, method: grand}
  - {name: k_center, target: base, method: k_center}
subsets:
  - {name: grace_20, score: grace, budget: {fraction: 0.2}}
  - {name: grape_tokens, score: grape, budget: {tokens: 2000}, stratify: [source]}
  - {name: diverse, score: k_center, budget: {samples: 10}}
engine: {device: cpu}
"""
RELEASED = ("grace_20", "grape_tokens")
PROMPTS = 30


def make(folder: Path) -> None:
    """Write corpus and configuration into a folder, run the main job, and release two subsets."""
    write_corpus(folder / "landing", n_prompts=PROMPTS)
    shutil.copytree(MODEL, folder / "model")
    (folder / "curation.yaml").write_text(CONFIG)
    workspace = Workspace.load(folder / "curation.yaml")
    with dg.DagsterInstance.ephemeral() as instance:
        job = MainJob(workspace, instance)
        print(job.run())
        for name in RELEASED:
            print(job.release(workspace.settings.subset(name)))


def main(archive: str) -> None:
    """Make the workspace, and pack it without the model, which the package holds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "v0_1"
        make(folder)
        with lzma.open(archive, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as out:
            for name in ("curation.yaml", "landing", "warehouse"):
                out.add(folder / name, name)


if __name__ == "__main__":
    main(sys.argv[1])
