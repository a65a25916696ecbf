"""What gradient spectra say of quality, and of how evenly training goes (arXiv 2504.10766), on the demo's corpus.

    python -m tests.benchmarks.spectra_claims

The demo's model as it is, all responses of the demo's corpus; some have a planted flaw, which no method is told of. The
claims: better responses have a higher effective rank R and a lower nuclear norm N, and training is steadier on those of
high R. First: AUROC of sound responses against flawed ones by R and by N, as they are, over min(T, d) and within
deciles of length, and the correlation of both with length. Then: runs of one epoch on the quarter of highest and of
lowest R, over the pool and within deciles of length (`stratify: [length]`), three seeds, LoRA r 8, batches of 8,
lr 1e-3: variance of the loss over the second half of the steps, and the mean norm of the gradient.

The last line is one JSON object: `auroc` by spectrum and control, `length` by spectrum, `runs` by subset.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import fmean, pvariance

import polars as pl
import torch
from rich.console import Console

from curation_assets import tables
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.corpus.samples import samples_of
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.demo.corpus import write_corpus
from curation_assets.demo.tour import CLEAN, MODEL, auroc
from curation_assets.operations.report_measured import measured_pool
from curation_assets.operations.report_spectra import METRICS, of_samples
from curation_assets.workspace.workspace import Workspace
from curation_resources.terminal import progress_bars
from curation_resources.training.trainer import Recipe, TrainingSpec, train
from tests.benchmarks.common import finish, parser, table

CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - {{name: tiny, model: {model}, warmup: none, signals: [gradient_spectra]}}
scores:
  - {{name: rich, target: tiny, method: spectra}}
subsets:
  - {{name: high, score: rich, budget: {{fraction: 0.25}}}}
  - {{name: low, score: rich, budget: {{fraction: 0.25}}, selector: {{kind: top, order: lowest}}}}
  - {{name: high_of_length, score: rich, budget: {{fraction: 0.25}}, stratify: [length]}}
  - name: low_of_length
    score: rich
    budget: {{fraction: 0.25}}
    stratify: [length]
    selector: {{kind: top, order: lowest}}
engine: {{device: cpu}}
"""
SUBSETS = ("high", "low", "high_of_length", "low_of_length")


def make_workspace(folder: Path, small: bool) -> Workspace:
    """The demo's corpus, measured and chosen from."""
    write_corpus(folder / "landing", n_prompts=20 if small else 300)
    (folder / "curation.yaml").write_text(CONFIG.format(model=MODEL))
    workspace = Workspace.load(folder / "curation.yaml")
    console = Console(width=160, markup=False)
    with open_instance(workspace) as instance, progress_bars(console) as progress:
        MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim")).run()
    return workspace


def quality(workspace: Workspace) -> tuple[dict[str, float | None], dict[str, float]]:
    """How well spectra tell sound responses from flawed ones, and how they go with length."""
    target = workspace.settings.target("tiny")
    columns = ("nuclear_norm", "effective_rank", "largest_rank")
    rows = measured_pool(workspace, target, "gradient_spectra", columns, ("response_tokens", "n_steps"))
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir())
    assert rows is not None
    assert corpus is not None
    extra = corpus.select("sample_id", "extra").unique("sample_id").collect()
    flaws = [json.loads(text)["labels"]["flaw"] for text in extra["extra"]]
    samples = of_samples(rows.drop_nulls("nuclear_norm"))
    samples = samples.join(extra.select("sample_id", flaw=pl.Series(flaws)), on="sample_id")
    told = {}
    for metric in METRICS:
        for control in ("none", "largest_rank", "length_bin"):
            sound = samples.filter(pl.col("flaw") == CLEAN)[f"{metric}.{control}"].drop_nulls()
            flawed = samples.filter(pl.col("flaw") != CLEAN)[f"{metric}.{control}"].drop_nulls()
            told[f"{metric}.{control}"] = auroc(sound, flawed)
    length = {
        metric: float(samples.select(pl.corr(f"{metric}.none", "response_tokens", method="spearman")).item())
        for metric in METRICS
    }
    return told, length


def runs(workspace: Workspace, folder: Path, seeds: int) -> dict[str, dict[str, float]]:
    """Short runs on each subset: variance of losses, norms of gradients, tokens of a response."""
    found = {}
    for name in SUBSETS:
        subset = workspace.warehouse.read_table(tables.subset_path(name))
        rows = corpus_rows(workspace, subset["sample_id"].to_list())
        variances, norms = [], []
        for seed in range(seeds):
            recipe = Recipe(learning_rate=1e-3, batch_size=8, schedule="constant", seed=seed)
            spec = TrainingSpec(MODEL, device="cpu")
            record = train(spec, samples_of(workspace, rows), folder / f"{name}-{seed}", recipe)
            later = record.losses[len(record.losses) // 2 :]
            variances.append(pvariance(later))
            norms.append(fmean(record.gradient_norms))
        scores = workspace.warehouse.scan(tables.sample_scores_dir("tiny"))
        assert scores is not None
        own = scores.filter(pl.col("sample_id").is_in(subset["sample_id"].implode()))
        tokens = own.select(pl.col("response_tokens").mean()).collect().item()
        found[name] = {
            "loss_variance": round(fmean(variances), 4),
            "gradient_norm": round(fmean(norms), 3),
            "response_tokens": round(float(tokens), 1),
        }
    return found


def main() -> None:
    """Measure, tell apart, train, print."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads or 1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        workspace = make_workspace(folder, options.small)
        told, length = quality(workspace)
        trained = runs(workspace, folder, 1 if options.small else 3)
    rows = [(name, "-" if value is None else round(value, 3)) for name, value in told.items()]
    print(table(("spectrum, control", "AUROC, sound against flawed"), rows))
    print(table(("subset", *trained["high"]), [(name, *values.values()) for name, values in trained.items()]))
    result = {
        "auroc": {name: None if value is None else round(value, 3) for name, value in told.items()},
        "length": {name: round(value, 3) for name, value in length.items()},
        "runs": trained,
    }
    finish("spectra_claims", result, options)


if __name__ == "__main__":
    main()
