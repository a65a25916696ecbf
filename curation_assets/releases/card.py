"""The dataset card of a release: its README.md."""

from __future__ import annotations

from typing import Any

from curation_assets.reports.text import escape_cell

MOST_SOURCES = 100


def dataset_card(manifest: dict[str, Any]) -> str:
    """The card as Markdown with the YAML header that dataset hubs read.

    Args:
        manifest: the release's manifest.
    """
    facts = _facts(manifest)
    lines = [
        "---",
        "configs:",
        # `datasets` keys its cache by the folder's name and this: under one name for all, release 1 of any subset
        # would be taken for that of another.
        f"- config_name: {manifest['subset']}-{manifest['number']}-{manifest['content_digest'][:12]}",
        "  data_files:",
        "  - split: train",
        "    path: data/train.parquet",
        "tags:",
        "- reasoning",
        "- curated",
        "---",
        f"# {manifest['subset']}, release {manifest['number']}",
        "",
        "Reasoning traces selected by what the model that they are meant to train makes of them.",
        "",
        "| what | value |",
        "| --- | --- |",
        *(f"| {name} | {escape_cell(value)} |" for name, value in facts),
        "",
        "## Sources",
        "",
        "| source | rows |",
        "| --- | --- |",
        *_source_rows(manifest["sources"]),
        "",
        "## Files",
        "",
        "- `data/train.parquet`: every column: content, rank, score, reason, shard and row of origin.",
        "- `data/train.jsonl`: `messages` for trainers, with `sample_id`, and `images` where the prompt shows some.",
        "- `images/`: images that arrived inside rows. Other image paths are relative to the file of origin.",
        "- `manifest.json`: inputs with hashes, checkpoint fingerprints, configuration, versions.",
        "- `SHA256SUMS`: check with `sha256sum -c SHA256SUMS`. `provenance.json` (run, time, machine) is not in it.",
        "",
        "## Limits",
        "",
        "A score does not check that an answer is right unless the selector says so, and it can grow with the number "
        "and length of steps (see the correlations above). The data keep the licences of their sources.",
        "",
    ]
    return "\n".join(lines)


def _source_rows(sources: dict[str, int]) -> list[str]:
    """The rows of the table of sources: the largest ones, where there are many."""
    shown = sorted(sorted(sources), key=lambda source: sources[source], reverse=True)[:MOST_SOURCES]
    rows = [f"| {escape_cell(source)} | {sources[source]} |" for source in sorted(shown)]
    if len(sources) > len(shown):
        left = sum(sources.values()) - sum(sources[source] for source in shown)
        rows.append(f"| ({len(sources) - len(shown):,} others: see `manifest.json`) | {left} |")
    return rows


def _pair(manifest: dict[str, Any], left: str, right: str) -> str:
    values = (manifest["selection"][left], manifest["selection"][right])
    return " / ".join("–" if value is None else f"{value:.3f}" for value in values)


def _facts(manifest: dict[str, Any]) -> list[tuple[str, object]]:
    score = manifest["parameters"]["score"]
    target, method = manifest["parameters"]["target"], manifest["parameters"]["method"]
    unfaithful = manifest["parameters"]["unfaithful"]
    return [
        ("rows", manifest["rows"]),
        ("prompts", manifest["prompts"]),
        ("chosen from a pool of", manifest["selection"]["pool"]),
        ("method", f"{method['name']}: {method['summary']} ({method['source']})"),
        ("parameters", _parameters(score)),
        ("selector", _parameters(manifest["parameters"]["selector"])),
        ("budget", _parameters(manifest["parameters"]["subset"]["budget"])),
        ("stratified by", ", ".join(manifest["parameters"]["subset"]["stratify"]) or "–"),
        ("filters", _parameters(manifest["parameters"]["subset"]["filters"]) or "–"),
        ("not faithful to the method", "; ".join(unfaithful) if unfaithful else "–"),
        ("measured with", target["model"]),
        ("warm-up", "none" if target["warmup"] == "none" else _warmup(manifest)),
        ("mean score, subset / pool", _pair(manifest, "mean_score_selected", "mean_score_pool")),
        (
            "correlation of the score with steps / tokens",
            _pair(manifest, "correlation_with_steps", "correlation_with_tokens"),
        ),
        ("content digest", manifest["content_digest"]),
    ]


def _parameters(section: dict[str, Any]) -> str:
    """A section's parameters as a line, but for what names it and what is not set."""
    said = {key: value for key, value in section.items() if key not in {"name", "target", "method"}}
    return ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None)


def _warmup(manifest: dict[str, Any]) -> str:
    facts = manifest["checkpoints"]["warmup"]
    return f"LoRA, {facts['samples']} samples, {facts['steps']} steps"
