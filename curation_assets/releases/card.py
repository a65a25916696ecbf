"""The dataset card of a release: its README.md, with the front matter that dataset hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from curation_assets.releases.changes import changes_text
from curation_assets.releases.file_names import DATA_PARQUET
from curation_assets.subsets.audited import findings_of
from curation_assets.subsets.facts import FUNNEL_COLUMNS, funnel_rows, right_text, source_advice, standardised_text
from curation_assets.subsets.thresholds import Stage
from curation_assets.tables.audit import METHOD_AUDIT
from curation_resources.text import escape_cell

MOST_SOURCES = 100
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
FILES = (
    "- `data/train.parquet`: content, rank, score, reason, steps with their scores, shard and row of origin.",
    "- `data/train.jsonl`: `messages` for trainers, with `sample_id`, and `images` if the prompt has some.",
    "- `traces.html`: the traces on one page that works offline.",
    "- `images/`: images that were embedded in rows. Other image paths are relative to the file of origin.",
    "- `manifest.json`: inputs with hashes, checkpoint fingerprints, configuration, versions.",
    "- `croissant.json`: metadata for dataset search engines (MLCommons Croissant).",
    "- `SHA256SUMS`: check with `sha256sum -c SHA256SUMS`. It does not cover `provenance.json` (run, time, machine).",
)
"""Lines of the card about the files of a release."""

OTHER = "other"
"""Hugging Face's identifier for several licences, or for one that is not in its list."""


def dataset_card(manifest: dict[str, Any], plots: Mapping[str, str] | None = None) -> str:
    """Return the card as Markdown with the YAML header that dataset hubs read.

    Args:
        manifest: the release's manifest.
        plots: paths of plots in the release, with their titles.
    """
    name = f"{manifest['subset']}@{manifest['number']}"
    lines = [
        *dataset_header(
            manifest, f"{manifest['subset']}, release {manifest['number']}", manifest["rows"], DATA_PARQUET
        ),
        f"# {manifest['subset']}, release {manifest['number']}",
        "",
        f"Reasoning traces selected by {escape_cell(manifest['parameters']['method']['name'])}. Open `traces.html` "
        "to read them; every step is coloured by its score if the method scores steps.",
        "",
        "| what | value |",
        "| --- | --- |",
        *(f"| {fact} | {escape_cell(value)} |" for fact, value in _facts(manifest)),
        "",
        *_plot_lines(plots or {}),
        "## Sources",
        "",
        "| source | rows | licence |",
        "| --- | --- | --- |",
        *_source_rows(manifest["sources"], manifest["licenses"]),
        "",
        "The data keep the licences of their sources.",
        "",
        *_funnel(manifest),
        "## Audit of the method",
        "",
        *_audit_lines(manifest),
        "",
        "## Duplicates and contamination",
        "",
        *_cleanliness(manifest),
        "",
        "## Changes from the previous release",
        "",
        _changes(manifest),
        "",
        "## Files",
        "",
        *FILES,
        "",
        "## Reproduce",
        "",
        "```sh",
        f"curate verify {name}      # check every file against the manifest",
        f"curate reproduce {name}   # recompute the rows from stored measurements and compare the bytes",
        "```",
        "",
        *_made_with(manifest),
        "",
        "## Limits",
        "",
        "A score does not check that an answer is correct unless the selector does, and it can grow with the number "
        "and length of steps (see the correlations above). Measuring with another model gives another selection.",
        "",
    ]
    return "\n".join(lines)


def _changes(manifest: dict[str, Any]) -> str:
    if manifest["changes"] is not None:
        return f"{changes_text(manifest['changes'])}."
    return "This is the first release." if manifest["parent"] is None else "The previous release could not be read."


def license_of(licenses: Mapping[str, str | None]) -> str | None:
    """Return the single licence of all sources, `other` for several; None if any source's licence is unknown."""
    found = set(licenses.values())
    if None in found or not found:
        return None
    return found.pop() if len(found) == 1 else OTHER


def dataset_header(manifest: Mapping[str, Any], title: str, rows: int, file: str, form: str = "") -> list[str]:
    """Return the YAML front matter that dataset hubs read; strings are written as JSON, so that no content can end one.

    Args:
        manifest: the release's manifest.
        title: name to display.
        rows: number of rows.
        file: path of the data file, or a pattern.
        form: export format, if it is not the release itself.
    """
    size = next((name for limit, name in SIZES if rows < limit), "n>1M")
    found = license_of(manifest["licenses"])
    name = (manifest["subset"], str(manifest["number"]), manifest["content_digest"][:12], form)
    return [
        "---",
        f"pretty_name: {json.dumps(title)}",
        *([f"license: {json.dumps(found)}"] if found is not None else []),
        *(["license_name: by-source"] if found == OTHER else []),
        "task_categories:",
        "- text-generation",
        "size_categories:",
        f"- {size}",
        "configs:",
        # `datasets` keys its cache by the folder's name and this name: with a constant name, it would confuse the
        # releases of different subsets, and exports of one in different formats.
        f"- config_name: {'-'.join(part for part in name if part)}",
        "  data_files:",
        "  - split: train",
        f"    path: {json.dumps(file)}",
        "tags:",
        "- reasoning",
        "- curated",
        f"- {json.dumps(manifest['parameters']['method']['name'])}",
        "---",
    ]


def _plot_lines(plots: Mapping[str, str]) -> list[str]:
    return [line for path, title in plots.items() for line in (f"![{escape_cell(title)}]({path})", "")]


def _source_rows(sources: dict[str, int], licenses: Mapping[str, str | None]) -> list[str]:
    """Return the rows of the table of sources, limited to the largest ones."""
    shown = sorted(sorted(sources), key=lambda source: sources[source], reverse=True)[:MOST_SOURCES]
    rows = [
        f"| {escape_cell(source)} | {sources[source]} | {escape_cell(licenses.get(source) or 'not stated')} |"
        for source in sorted(shown)
    ]
    if len(sources) > len(shown):
        left = sum(sources.values()) - sum(sources[source] for source in shown)
        rows.append(f"| ({len(sources) - len(shown):,} others: see `manifest.json`) | {left} | |")
    return rows


def _funnel(manifest: dict[str, Any]) -> list[str]:
    """Return the section about the stages of the selection; nothing for releases that do not record them."""
    stages = [Stage(**stage) for stage in manifest.get("funnel", [])]
    if not stages:
        return []
    return [
        "## Funnel",
        "",
        f"| {' | '.join(FUNNEL_COLUMNS)} |",
        f"|{' --- |' * len(FUNNEL_COLUMNS)}",
        *(f"| {' | '.join(map(escape_cell, row))} |" for row in funnel_rows(stages)),
        "",
    ]


def _audit_lines(manifest: dict[str, Any]) -> list[str]:
    """Return what `curate audit` found about the score, or that there was no audit."""
    rows = manifest.get("audit")
    if rows is None:
        return ["Not audited: whether this score tells good traces from bad ones here is not known (`curate audit`)."]
    headers, found = findings_of(pl.DataFrame(rows, METHOD_AUDIT.schema))
    lines = [
        "Samples of the pool against flawed twins of them, and against labels: .5 is chance, with 95 % intervals. "
        "Verdicts are corrected for the number of comparisons.",
        "",
        f"| {' | '.join(headers)} |",
        f"|{' --- |' * len(headers)}",
    ]
    return lines + [f"| {' | '.join(escape_cell('–' if cell is None else cell) for cell in row)} |" for row in found]


def _cleanliness(manifest: dict[str, Any]) -> list[str]:
    """Return the checks that were made on the pool, with their findings."""
    selection, filters = manifest["selection"], manifest["config"]["settings"]["corpus"]["filters"]
    lines = [f"- exact duplicates excluded from the pool: {selection['duplicates_left_out']}"]
    for key, what in (
        ("near_duplicates", "near duplicates"),
        ("contamination", "overlap with benchmarks"),
        ("repetition", "repetition inside a response"),
        ("languages", "other languages"),
    ):
        if not filters.get(key):
            lines.append(f"- {what}: not checked")
    found = {name.removeprefix("filtered_"): count for name, count in selection.items() if name.startswith("filtered_")}
    lines += [f"- excluded for {escape_cell(name)}: {count}" for name, count in sorted(found.items())]
    if "prompts_in_validation_sets" in selection:
        count = selection["prompts_in_validation_sets"]
        lines.append(f"- samples of the pool with a prompt from a validation set: {count}")
    return lines


def _made_with(manifest: dict[str, Any]) -> list[str]:
    packages = {name: version for name, version in manifest["packages"].items() if version is not None}
    commit, changed = manifest["code"]["commit"], manifest["code"]["changed"]
    return [
        f"- configuration: `{manifest['config']['digest']}`, in full in `manifest.json`",
        f"- code: {commit or 'installed package'}{' with changes' if changed else ''}",
        f"- packages: {', '.join(f'{name} {version}' for name, version in packages.items())}",
        f"- inputs: {sum(1 for one in manifest['inputs'] if one['present'])} files, with hashes in `manifest.json`",
    ]


def _pair(manifest: dict[str, Any], left: str, right: str) -> str:
    values = (manifest["selection"][left], manifest["selection"][right])
    return " / ".join("–" if value is None else f"{value:.3f}" for value in values)


def _source_share(manifest: dict[str, Any]) -> str:
    share = manifest["selection"].get("variance_by_source")
    subset = manifest["parameters"]["subset"]
    within_sources = "source" in subset["stratify"] or subset.get("standardise") == "source"
    advice = source_advice(manifest["parameters"]["score"]["name"], share, within_sources)
    return "–" if share is None else f"{share:.0%}" if advice is None else f"{share:.0%}: {advice}"


def standardised_of(manifest: Mapping[str, Any]) -> str | None:
    """Return how a release was ranked, if scores were standardised within sources; else None."""
    parameters = manifest["parameters"]
    return standardised_text(parameters["score"]["name"]) if parameters["subset"].get("standardise") else None


def _facts(manifest: dict[str, Any]) -> list[tuple[str, object]]:
    score = manifest["parameters"]["score"]
    target, method = manifest["parameters"]["target"], manifest["parameters"]["method"]
    unfaithful = manifest["parameters"]["unfaithful"]
    right = right_text(manifest["selection"])
    return [
        ("rows", manifest["rows"]),
        ("prompts", manifest["prompts"]),
        ("selected from a pool of", manifest["selection"]["pool"]),
        ("method", f"{method['name']}: {method['summary']} ({method['source']})"),
        ("parameters", _parameters(score)),
        ("selector", _parameters(manifest["parameters"]["selector"])),
        ("budget", _parameters(manifest["parameters"]["subset"]["budget"])),
        ("stratified by", ", ".join(manifest["parameters"]["subset"]["stratify"]) or "–"),
        *([("ranked by", standardised)] if (standardised := standardised_of(manifest)) is not None else []),
        ("filters", _parameters(manifest["parameters"]["subset"]["filters"]) or "–"),
        ("not faithful to the method", "; ".join(unfaithful) if unfaithful else "–"),
        ("measured with", target["model"]),
        ("warm-up", "none" if target["warmup"] == "none" else _warmup(manifest)),
        ("mean score, subset / pool", _pair(manifest, "mean_score_selected", "mean_score_pool")),
        *([] if right is None else [("marked right", right)]),
        (
            "correlation of the score with steps / tokens",
            _pair(manifest, "correlation_with_steps", "correlation_with_tokens"),
        ),
        ("share of the score's variance that the source explains", _source_share(manifest)),
        ("content digest", manifest["content_digest"]),
    ]


def _parameters(section: dict[str, Any]) -> str:
    """Return a section's parameters on one line, without names and unset values."""
    said = {key: value for key, value in section.items() if key not in {"name", "target", "method"}}
    return ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None)


def _warmup(manifest: dict[str, Any]) -> str:
    facts = manifest["checkpoints"]["warmup"]
    return f"LoRA, {facts['samples']} samples, {facts['steps']} steps"
