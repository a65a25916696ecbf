"""The sections of curation.yaml on how the pipeline runs: where it measures, how much, who is told, how S3 is reached.

What it makes of which data stands in `curation_assets.config.settings`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from curation_resources.sections import LocatedError, Section

DEVICES = r"^(auto|cpu|cuda|cuda:\d+(,cuda:\d+)*)$"
OWN_TAGS = ("curation/", "dagster/asset_partition", "dagster/partition")
"""Beginnings of tags by which runs say what they are about."""


class Engine(Section):
    """Where shards are measured."""

    kind: Literal["local", "ray"] = Field(
        "local", description="local: this machine's devices; ray: workers of a Ray cluster (extra `ray`)"
    )
    address: str = Field(
        "auto",
        min_length=1,
        description="of the Ray cluster: auto (this machine's), local (one of this run's own), HOST:PORT, "
        "ray://HOST:PORT",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Ray workers; those without room wait for nodes; default: one a GPU that is there, else by "
        "cpus_per_worker",
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs, and threads, of a Ray worker without a GPU")
    device: str = Field(
        "auto",
        description="auto: every CUDA device that is visible, else the CPU; several: cuda:0,cuda:1; with Ray, cuda: a "
        "GPU a worker although there may be none yet",
        json_schema_extra={"pattern": DEVICES},
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="attention implementation; auto: the fastest that the model and the device have"
    )
    compile: bool = Field(False, description="compile the model first: minutes once, then faster batches")
    batch_tokens: int = Field(8192, ge=1, description="tokens a batch, padding included")
    head_memory_mib: int | None = Field(
        None, ge=1, description="memory that the streamed LM head may use for logits; default: 256, on CUDA 768"
    )
    part_seconds: float = Field(5.0, ge=0, description="finished rows are committed this often", examples=[5.0])
    reading_processes: int | None = Field(
        None, ge=1, description="processes that read shards; default: one a core, up to 8, where there is much to read"
    )
    shards_per_run: int = Field(200, ge=1, description="longest range of shards that one run takes")
    rows_in_memory: int = Field(
        5_000_000, ge=0, description="scores that a subset is chosen from in memory; more are sorted on disk"
    )
    selection_memory_mib: int = Field(
        2048, ge=256, description="memory that this sorting may use, beside some 700 MiB for reading and Python"
    )
    run_tags: dict[str, str | dict[str, Any]] = Field(
        {},
        description="tags of launched runs that need a device, and of no others: how a launcher gives them one "
        "(dagster-k8s/config, ecs/run_task_kwargs); what is no text becomes JSON",
    )

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if re.fullmatch(DEVICES, device) is None:
            raise ValueError(
                f"must be auto, cpu, cuda, or CUDA devices by number, as in cuda:1 or cuda:0,cuda:1 (found {device!r})"
            )
        return device

    @field_validator("run_tags")
    @classmethod
    def _tags_are_not_ours(cls, tags: dict[str, str | dict[str, Any]]) -> dict[str, str | dict[str, Any]]:
        for name, value in tags.items():
            if name.startswith(OWN_TAGS):
                raise ValueError(f"{name} is what runs say of themselves: leave it out")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} cannot be written as JSON ({error}): quote what is meant as text") from error
        return tags

    @property
    def one_device(self) -> str:
        """What trains and answers: one device, whatever number of them measures."""
        return self.device.split(",")[0]


class Limits(Section):
    """How much may be measured: by one `curate run`, and by all runs together that sensors launch in a day (UTC)."""

    tokens: int | None = Field(None, ge=1, description="tokens run through models; what is over it is left due")
    device_hours: float | None = Field(None, gt=0, description="hours of measuring, times the devices")

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return self.tokens is not None or self.device_hours is not None


class Alerts(Section):
    """Who is told when a run fails, or the landing area is refused; neither: nobody, and the UI shows it."""

    command: list[str] | None = Field(
        None, min_length=1, description="program and arguments; it gets the alert as JSON on its standard input"
    )
    webhook_variable: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable with the address that the alert is POSTed to; the address is a secret, and "
        "every release holds this file",
    )


class Freshness(Section):
    """How old subsets and manifests of scores may be before the UI says so: nothing new arrived, or something is
    stuck."""

    fail_hours: float | None = Field(None, ge=1 / 60, description="older ones fail their freshness policy")
    warn_hours: float | None = Field(None, ge=1 / 60, description="older ones are warned of; less than fail_hours")

    @model_validator(mode="after")
    def _warned_before(self) -> Freshness:
        if self.warn_hours is not None and self.fail_hours is None:
            raise LocatedError(["warn_hours"], "a warning comes before a failure; add fail_hours")
        if self.warn_hours is not None and self.fail_hours is not None and self.warn_hours >= self.fail_hours:
            raise LocatedError(["warn_hours"], f"must be less than fail_hours ({self.fail_hours:g})")
        return self


class S3(Section):
    """How S3 is reached; what is not said comes from the environment. Credentials never stand in this file, which
    every release holds: they come from environment, profile or role."""

    endpoint_url: str | None = Field(None, description="another service than AWS")
    region: str | None = None
    profile: str | None = Field(None, description="a named profile of the AWS configuration")
    max_attempts: int = Field(6, ge=1, description="tries of a request that S3 throttles or fails")
