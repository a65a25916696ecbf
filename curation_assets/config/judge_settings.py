"""The part of `curation.yaml` that says where a judge is asked, and what."""

from __future__ import annotations

from pydantic import Field, field_validator

from curation_resources.models.judge import DIFFICULTY_PROMPT, TAGS_PROMPT
from curation_resources.sections import Section


class Endpoint(Section):
    """An OpenAI-compatible endpoint at which a target's `model` is asked, as a judge; `limits.tokens` bounds it."""

    url: str = Field(
        pattern=r"^https?://[^\s@]+$",
        description="base address, as in https://api.example.com/v1 or http://localhost:8000/v1",
    )
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable with the key; never the key itself, since every release holds this file",
    )
    tags_prompt: str = Field(TAGS_PROMPT, description="asked for instruction_tags; {prompt} is the sample's prompt")
    difficulty_prompt: str = Field(DIFFICULTY_PROMPT, description="asked for difficulty; {prompt} likewise")
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1, description="of a reply")
    workers: int = Field(8, ge=1, le=256, description="requests at a time")
    timeout_seconds: float = Field(120.0, gt=0, description="of a request")
    attempts: int = Field(5, ge=1, description="tries of a request that fails for a reason that may pass")
    ask_again: int = Field(
        0, ge=0, description="raise it to ask once more what was refused or not understood, and nothing else"
    )

    @field_validator("tags_prompt", "difficulty_prompt")
    @classmethod
    def _the_prompt_is_shown(cls, text: str) -> str:
        if "{prompt}" not in text:
            raise ValueError("the question does not show what it is about: put {prompt} where the sample's prompt goes")
        return text
