"""Any sequence-classification reward model as a pass: the raw logit of prompt and response as a conversation.

`ConversationPass` holds what process reward models (`curation_resources.models.process_reward`) share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from jinja2 import TemplateError

from curation_resources.errors import UserError
from curation_resources.scoring.samples import NON_FINITE, Request, Sample, SampleSignals, template_turn, turn_text
from curation_resources.scoring.spec import PassSpec

WINDOW = 512
"""Samples that are tokenized and sorted by length together."""


Value = TypeVar("Value")


class RewardError(UserError):
    """A reward model cannot be used."""


class ConversationPass(ABC, Generic[Value]):
    """Measures samples with a model that reads prompt and response as a conversation.

    Args:
        spec: the model; adapter and template are ignored in favour of the model's own chat template.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: the model is of another kind, or some of its weights are missing.
    """

    def __init__(self, spec: PassSpec, device: str) -> None:
        from transformers import AutoTokenizer

        from curation_resources.scoring.loading import context_length  # noqa: PLC0415

        self._spec, self._device = spec, device
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            spec.model_folder, trust_remote_code=spec.trust_remote_code
        )
        self._model: Any = self.load().to(device).eval()
        context = context_length(self._model.config)
        self._max_length = context if spec.max_length is None else min(context, spec.max_length)
        self._batch_tokens = spec.batch_tokens

    @abstractmethod
    def load(self) -> Any:
        """Return the model."""

    @abstractmethod
    def conversation(self, sample: Sample, position: int) -> tuple[list[int] | None, SampleSignals]:
        """Return a sample's tokens, and its counts and flags; zero tokens if it is not run."""

    @abstractmethod
    def requested(self, request: Request) -> bool:
        """Return whether a request asks for the signal."""

    @abstractmethod
    def read(self, logits: Any, batch: Sequence[Sequence[int]]) -> list[Value]:
        """Return each conversation's value from the model's logits, a tensor [conversations, ...]."""

    @abstractmethod
    def keep(self, result: SampleSignals, value: Value) -> None:
        """Add a value, or the flag of one that is not finite, to a sample's result."""

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None = None
    ) -> Iterator[list[SampleSignals]]:
        """Measure samples; see `curation_resources.scoring.forward.ForwardPass.stream`."""
        from curation_resources.scoring.batching import plan_batches  # noqa: PLC0415

        for start in range(0, len(samples), WINDOW):
            window = samples[start : start + WINDOW]
            rendered = [self.conversation(sample, start + place) for place, sample in enumerate(window)]
            results = [result for _, result in rendered]
            ids = [tokens or [] for tokens, _ in rendered]
            wanted = [place for place, result in enumerate(results) if result.tokens and self.requested(request)]
            for batch in plan_batches([len(ids[place]) for place in wanted], self._batch_tokens):
                places = [wanted[number] for number in batch]
                for place, value in zip(places, self._values([ids[place] for place in places]), strict=True):
                    self.keep(results[place], value)
            if progress is not None:
                progress(len(results))
            yield results

    def _values(self, batch: Sequence[Sequence[int]]) -> list[Value]:
        """Return the value of each conversation; a batch that does not fit into memory is split in half.

        Raises:
            OutOfMemoryError: a single conversation does not fit.
        """
        import torch

        from curation_resources.scoring.forward import OutOfMemoryError, attempted  # noqa: PLC0415

        alone = OutOfMemoryError(
            f"a conversation of {len(batch[0])} tokens does not fit into the memory of {self._device}. Lower the "
            "target's max_length or use a smaller dtype."
        )
        run = partial(self._together, batch)
        found = attempted(run, torch.device(self._device), alone if len(batch) == 1 else None)
        if found is not None:
            return found
        half = len(batch) // 2
        return [*self._values(batch[:half]), *self._values(batch[half:])]

    def _together(self, batch: Sequence[Sequence[int]]) -> list[Value]:
        import torch

        longest, padding = max(map(len, batch)), self._padding({ids[-1] for ids in batch})
        rows = [[*ids, *[padding] * (longest - len(ids))] for ids in batch]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor(rows, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
            )
            return self.read(output.logits, batch)

    def _padding(self, last: set[int]) -> int:
        """Return a padding token that no sequence ends with: decoders take the logit of the last non-padding token."""
        own = self._tokenizer.pad_token_id
        padding = own if own is not None and own not in last else min(set(range(len(last) + 1)) - last)
        self._model.config.get_text_config().pad_token_id = padding
        return int(padding)


class RewardPass(ConversationPass[float]):
    """Measures samples with a reward model; the only signal is `rewards`.

    Raises:
        RewardError: the model does not output exactly one number.
        LoadingError: weights are missing; a plain language model's folder has no reward head, for example.
    """

    def load(self) -> Any:
        """Return the model."""
        from transformers import AutoModelForSequenceClassification

        from curation_resources.scoring.complete_weights import load_whole  # noqa: PLC0415
        from curation_resources.scoring.loading import DTYPES  # noqa: PLC0415

        model, _ = load_whole(
            AutoModelForSequenceClassification,
            self._spec.model_folder,
            "a reward model",
            dtype=DTYPES[self._spec.dtype],
            trust_remote_code=self._spec.trust_remote_code,
        )
        if model.config.num_labels != 1:
            raise RewardError(
                f"{self._spec.model_folder} classifies into {model.config.num_labels} labels. Name a reward model, "
                "which outputs one number (num_labels: 1)."
            )
        return model

    def conversation(self, sample: Sample, position: int) -> tuple[list[int] | None, SampleSignals]:
        """Return a sample's tokens, and its counts and flags; zero tokens if it is not run."""
        ids = conversation_ids(self._tokenizer, sample)
        return ids, describe_conversation(self._tokenizer, sample, ids, self._max_length, position)

    def requested(self, request: Request) -> bool:
        """Return whether a request asks for the signal."""
        return request.rewards

    def read(self, logits: Any, batch: Sequence[Sequence[int]]) -> list[float]:
        """Return each conversation's logit."""
        found: list[float] = logits[: len(batch), 0].float().cpu().tolist()
        return found

    def keep(self, result: SampleSignals, value: float) -> None:
        """Add a reward, or the flag of one that is not finite, to a sample's result."""
        if np.isfinite(value):
            result.reward = value
        else:
            result.flags.append(NON_FINITE)


def conversation_ids(tokenizer: Any, sample: Sample) -> list[int] | None:
    """Return the token ids of prompt and response as a conversation, by the chat template or else one turn per line.

    None if the template rejects the turns (a system turn, say).
    """
    turns = [*map(template_turn, sample.messages), {"role": "assistant", "content": sample.response}]
    if tokenizer.chat_template:
        try:
            rendered = tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:
            return None
        ids: list[int] = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = tokenizer("\n".join(map(turn_text, [*sample.messages, turns[-1]])), verbose=False)["input_ids"]
    return ids


def describe_conversation(
    tokenizer: Any, sample: Sample, ids: Sequence[int] | None, max_length: int, position: int = 0
) -> SampleSignals:
    """Return a sample's token counts and flags for a reward model; zero tokens if it gets no reward."""
    result = SampleSignals(sample.sample_id, position)
    if sample.images:
        result.flags.append("images_not_supported")
    elif not sample.response.strip():
        result.flags.append("empty_response")
    elif ids is None:
        result.flags.append("template_refused")
    elif len(ids) > max_length:
        # A truncated response would be judged as if it were complete.
        result.flags.append("too_long")
    else:
        result.tokens = len(ids)
    if not result.flags or result.flags == ["too_long"]:
        own = tokenizer(sample.response, add_special_tokens=False, verbose=False)["input_ids"]
        result.response_tokens = len(own)
    return result
