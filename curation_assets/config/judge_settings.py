"""Section `endpoint` of `curation.yaml`: where a judge is queried, and with which prompts."""

from __future__ import annotations

from pydantic import Field, field_validator

from curation_resources.models.judge import DIFFICULTY_PROMPT, TAGS_PROMPT
from curation_resources.sections import Section


class Endpoint(Section):
    """An OpenAI-compatible endpoint that serves a target's `model` as a judge; `limits.tokens` bounds its use."""

    url: str = Field(
        pattern=r"^https?://[^\s@]+$",
        description="base URL, such as https://api.example.com/v1 or http://localhost:8000/v1",
    )
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable that holds the API key; never put the key itself here, because every "
        "release contains this file",
    )
    tags_prompt: str = Field(
        TAGS_PROMPT, description="prompt for instruction_tags; {prompt} is replaced by the sample's prompt"
    )
    difficulty_prompt: str = Field(
        DIFFICULTY_PROMPT, description="prompt for difficulty; {prompt} is replaced by the sample's prompt"
    )
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1, description="maximum tokens per reply")
    workers: int = Field(8, ge=1, le=256, description="concurrent requests")
    timeout_seconds: float = Field(120.0, gt=0, description="timeout of a request")
    attempts: int = Field(5, ge=1, description="attempts per request if the failure may be transient")
    ask_again: int = Field(
        0, ge=0, description="increase to repeat only the requests that were refused or could not be parsed"
    )

    @field_validator("tags_prompt", "difficulty_prompt")
    @classmethod
    def _the_prompt_is_shown(cls, text: str) -> str:
        if "{prompt}" not in text:
            raise ValueError("the question does not contain the sample's prompt. Put {prompt} where the prompt goes.")
        return text
