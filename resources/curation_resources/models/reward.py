"""Any sequence-classification reward model as a pass: the raw logit of prompt and response as a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from jinja2 import TemplateError

from curation_resources.errors import UserError
from curation_resources.scoring.samples import NON_FINITE, Request, Sample, SampleSignals, template_turn, turn_text
from curation_resources.scoring.spec import PassSpec

WINDOW = 512
"""Samples that are tokenized and sorted by length together."""


class RewardError(UserError):
    """A reward model cannot be used."""


class RewardPass:
    """Measures samples with a reward model; the only signal is `rewards`.

    Args:
        spec: the model; adapter and template are ignored in favour of the model's own chat template.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        RewardError: the model does not output exactly one number.
        LoadingError: weights are missing; a plain language model's folder has no reward head, for example.
    """

    def __init__(self, spec: PassSpec, device: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from curation_resources.scoring.complete_weights import load_whole  # noqa: PLC0415
        from curation_resources.scoring.loading import DTYPES, context_length  # noqa: PLC0415

        trust = spec.trust_remote_code
        self._model, _ = load_whole(
            AutoModelForSequenceClassification,
            spec.model_folder,
            "a reward model",
            dtype=DTYPES[spec.dtype],
            trust_remote_code=trust,
        )
        if self._model.config.num_labels != 1:
            raise RewardError(
                f"{spec.model_folder} classifies into {self._model.config.num_labels} labels. Name a reward model, "
                "which outputs one number (num_labels: 1)."
            )
        self._model = self._model.to(device).eval()
        self._device = device
        self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model_folder, trust_remote_code=trust)
        context = context_length(self._model.config)
        self._max_length = context if spec.max_length is None else min(context, spec.max_length)
        self._batch_tokens = spec.batch_tokens

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None = None
    ) -> Iterator[list[SampleSignals]]:
        """Reward samples; see `curation_resources.scoring.forward.ForwardPass.stream`."""
        from curation_resources.scoring.batching import plan_batches  # noqa: PLC0415

        for start in range(0, len(samples), WINDOW):
            window = samples[start : start + WINDOW]
            rendered = [conversation_ids(self._tokenizer, sample) for sample in window]
            results = [
                describe_conversation(self._tokenizer, sample, tokens, self._max_length, start + place)
                for place, (sample, tokens) in enumerate(zip(window, rendered, strict=True))
            ]
            ids = [tokens or [] for tokens in rendered]
            wanted = [place for place, result in enumerate(results) if result.tokens and request.rewards]
            for batch in plan_batches([len(ids[place]) for place in wanted], self._batch_tokens):
                places = [wanted[number] for number in batch]
                for place, reward in zip(places, self._rewards([ids[place] for place in places]), strict=True):
                    if np.isfinite(reward):
                        results[place].reward = reward
                    else:
                        results[place].flags.append(NON_FINITE)
            if progress is not None:
                progress(len(results))
            yield results

    def _rewards(self, batch: Sequence[Sequence[int]]) -> list[float]:
        """Return the reward of each conversation; a batch that does not fit into memory is split in half.

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
        return [*self._rewards(batch[:half]), *self._rewards(batch[half:])]

    def _together(self, batch: Sequence[Sequence[int]]) -> list[float]:
        import torch

        longest, padding = max(map(len, batch)), self._padding({ids[-1] for ids in batch})
        rows = [[*ids, *[padding] * (longest - len(ids))] for ids in batch]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(rows, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
            ).logits
        found: list[float] = logits[:, 0].float().cpu().tolist()
        return found

    def _padding(self, last: set[int]) -> int:
        """Return a padding token that no sequence ends with: decoders take the logit of the last non-padding token."""
        own = self._tokenizer.pad_token_id
        padding = own if own is not None and own not in last else min(set(range(len(last) + 1)) - last)
        self._model.config.get_text_config().pad_token_id = padding
        return int(padding)


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
