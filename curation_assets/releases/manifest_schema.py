"""Schema of `manifest.json`, for validation by other programs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileFacts(_Strict):
    """Size and checksum of a file of the release."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ConfigFacts(_Strict):
    """The configuration of the release."""

    digest: str = Field(description="BLAKE2b-128 of the file's bytes, hex")
    settings: dict[str, Any] = Field(description="full configuration, including defaults")


class Parameters(_Strict):
    """All parameters of the selection."""

    subset: dict[str, Any]
    score: dict[str, Any]
    selector: dict[str, Any]
    target: dict[str, Any]
    method: dict[str, str]
    unfaithful: list[str] = Field(description="deviations from the published method")


class FunnelStage(_Strict):
    """A stage of the selection, with the samples that it left."""

    subset: str = Field(description="the subset whose selection the stage belongs to")
    name: str
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0, description="response tokens, counted by the target of the subset's score")
    marked: int = Field(ge=0, description="samples that are marked right or wrong")
    right: int = Field(ge=0, description="samples that are marked right")
    no_value: int = Field(0, ge=0, description="samples that a threshold dropped because they have no such score")


class UpstreamTarget(_Strict):
    """A target whose scores were read."""

    manifest: str | None = Field(description="digest of its manifest of scores")
    signal_fingerprints: dict[str, str | None]
    warmup: str | None = Field(description="key of the warm-up that it was measured after")
    scores: list[str]
    validation: list[str] = Field(description="validation sets that these scores compare with")


class Upstream(_Strict):
    """Subsets and scores that a selection read beside one score of one target."""

    subsets: dict[str, str | None] = Field({}, description="subsets that it was chosen from, with content digests")
    targets: dict[str, UpstreamTarget] = Field({}, description="targets whose scores were read, with the subset's own")


class Checkpoints(_Strict):
    """The checkpoints that the signals were measured at."""

    base_model: dict[str, Any]
    measured_at: str | None
    warmup: dict[str, Any] | None
    perturbation: dict[str, Any] | None
    signal_fingerprints: dict[str, str | None]


class StepPosition(_Strict):
    """Scores of the pool's steps at one position, or at several with few steps: up to the next `step_index`."""

    step_index: int = Field(ge=1, description="the first position")
    steps: int = Field(ge=1)
    mean: float = Field(allow_inf_nan=False)
    deviation: float = Field(ge=0, allow_inf_nan=False, description="standard deviation (n - 1)")


class Manifest(_Strict):
    """`manifest.json` of a release (schema version 1)."""

    schema_version: Literal[1]
    subset: str
    number: int = Field(ge=1)
    parent: int | None = Field(description="number of the previous release")
    parent_release: str | None = Field(description="release that the target was trained on (multi-round selection)")
    content_digest: str = Field(description="BLAKE2b-128 of the rows as JSON lines, hex")
    subset_digest: str = Field(description="digest of the selection: ids, ranks, scores, weights, reasons")
    steps_digest: str = Field(description="digest of the columns about steps")
    rows: int = Field(ge=1)
    prompts: int = Field(ge=1)
    sources: dict[str, int] = Field(description="rows by source")
    licenses: dict[str, str | None] = Field(
        {}, description="licence of each source in the configuration; null: not stated"
    )
    selection: dict[str, float | int | None] = Field(description="counts and biases of the selection")
    funnel: list[FunnelStage] = Field(
        [], description="what each stage of the selection left; empty in releases of earlier versions"
    )
    score_distribution: dict[str, float | None]
    changes: dict[str, float | int | None] | None = Field(
        None, description="changes from the parent; null for a first release"
    )
    parameters: Parameters
    audit: list[dict[str, Any]] | None = Field(
        None, description="rows of table `method_audit` about the score; null: not audited"
    )
    step_positions: list[StepPosition] | None = Field(
        None, description="step scores of the pool by position, which the trace page adjusts for; null: not scored"
    )
    checkpoints: Checkpoints
    inputs: list[dict[str, Any]] = Field(description="input files of the pool, with hashes")
    upstream: Upstream = Field(
        Upstream(), description="what a chain, thresholds and combinations read; empty for a subset by one score"
    )
    config: ConfigFacts
    packages: dict[str, str | None]
    code: dict[str, Any]
    files: dict[str, FileFacts]


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema of `manifest.json`."""
    schema = Manifest.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
