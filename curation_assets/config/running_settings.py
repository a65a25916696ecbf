"""Sections of curation.yaml about running the pipeline: devices, limits, alerts, freshness and S3.

The data product itself is configured in `curation_assets.config.settings`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from curation_resources.sections import LocatedError, Section

DEVICES = r"^(auto|cpu|cuda|cuda:\d+(,cuda:\d+)*)$"
OWN_TAGS = ("curation/", "dagster/asset_partition", "dagster/partition")
"""Prefixes of the tags that the pipeline sets on its own runs."""


class Engine(Section):
    """The engine that measures shards."""

    kind: Literal["local", "ray"] = Field(
        "local", description="local: the devices of this machine; ray: the workers of a Ray cluster (extra `ray`)"
    )
    address: str = Field(
        "auto",
        min_length=1,
        description="address of the Ray cluster: auto (the one on this machine), local (a new one for this run), "
        "HOST:PORT, ray://HOST:PORT",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Ray workers; workers without resources wait for nodes; default: one per available GPU, else "
        "according to cpus_per_worker",
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs, and threads, per Ray worker without a GPU")
    device: str = Field(
        "auto",
        description="auto: every visible CUDA device, else the CPU; several: cuda:0,cuda:1; with Ray, cuda: one GPU "
        "per worker, even if none is available yet",
        json_schema_extra={"pattern": DEVICES},
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="attention implementation; auto: the fastest that the model and the device support"
    )
    compile: bool = Field(False, description="compile the model first: takes minutes once, then batches run faster")
    batch_tokens: int = Field(8192, ge=1, description="tokens per batch, including padding")
    head_memory_mib: int | None = Field(
        None, ge=1, description="memory for the logits of the streamed LM head; default: 256, or 768 on CUDA"
    )
    part_seconds: float = Field(5.0, ge=0, description="interval at which finished rows are committed", examples=[5.0])
    reading_processes: int | None = Field(
        None, ge=1, description="processes that read shards; default: one per core, up to 8, if the input is large"
    )
    shards_per_run: int = Field(200, ge=1, description="maximum number of shards in the range of one run")
    rows_in_memory: int = Field(
        5_000_000,
        ge=0,
        description="rows whose scores a what-if recomputes at a time; a warning is logged if a selector that compares "
        "vectors has more candidates than this",
    )
    selection_memory_mib: int = Field(
        2048,
        ge=256,
        description="memory for selecting; beyond it, sorts continue on disk; reading and Python add about 700 MiB",
    )
    run_tags: dict[str, str | dict[str, Any]] = Field(
        {},
        description="tags added only to launched runs that need a device, so that the launcher can provide one "
        "(dagster-k8s/config, ecs/run_task_kwargs); values that are not text are encoded as JSON",
    )

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if re.fullmatch(DEVICES, device) is None:
            raise ValueError(
                f"must be auto, cpu, cuda, or numbered CUDA devices such as cuda:1 or cuda:0,cuda:1 (found {device!r})"
            )
        return device

    @field_validator("run_tags")
    @classmethod
    def _tags_are_not_ours(cls, tags: dict[str, str | dict[str, Any]]) -> dict[str, str | dict[str, Any]]:
        for name, value in tags.items():
            if name.startswith(OWN_TAGS):
                raise ValueError(f"{name} is reserved for tags that the pipeline sets itself. Remove it.")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{name} cannot be encoded as JSON ({error}). Quote values that are meant as text."
                ) from error
        return tags

    @property
    def one_device(self) -> str:
        """Return the single device for training and generation, whatever the number of devices that measure."""
        return self.device.split(",")[0]


class Limits(Section):
    """Limits on measuring: per `curate run`, and per day (UTC) for all runs that sensors launch together."""

    tokens: int | None = Field(None, ge=1, description="tokens processed by models; work beyond the limit stays due")
    device_hours: float | None = Field(
        None, gt=0, description="hours of measuring, multiplied by the number of devices"
    )

    @property
    def any(self) -> bool:
        """Return whether any limit is set."""
        return self.tokens is not None or self.device_hours is not None


class Alerts(Section):
    """Recipients of alerts about failed runs and a rejected landing area; without any, problems only appear in the
    UI."""

    command: list[str] | None = Field(
        None, min_length=1, description="program and arguments; it receives the alert as JSON on standard input"
    )
    webhook_variable: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable that holds the URL to POST alerts to; the URL is a secret, and every "
        "release contains this file",
    )


class Freshness(Section):
    """Maximum age of subsets and score manifests before the UI reports them: no data arrived, or a run is stuck."""

    fail_hours: float | None = Field(None, ge=1 / 60, description="age at which the freshness policy fails")
    warn_hours: float | None = Field(
        None, ge=1 / 60, description="age at which the freshness policy warns; must be less than fail_hours"
    )

    @model_validator(mode="after")
    def _warned_before(self) -> Freshness:
        if self.warn_hours is not None and self.fail_hours is None:
            raise LocatedError(["warn_hours"], "warn_hours is set without fail_hours. Add fail_hours.")
        if self.warn_hours is not None and self.fail_hours is not None and self.warn_hours >= self.fail_hours:
            raise LocatedError(["warn_hours"], f"must be less than fail_hours ({self.fail_hours:g})")
        return self


class S3(Section):
    """Access to S3; settings that are missing here come from the environment.

    Never put credentials in this file, because every release contains it: they come from the environment, a profile
    or a role.
    """

    endpoint_url: str | None = Field(None, description="endpoint of an S3-compatible service other than AWS")
    region: str | None = None
    profile: str | None = Field(None, description="a named profile of the AWS configuration")
    max_attempts: int = Field(6, ge=1, description="attempts per request when S3 throttles or fails")
