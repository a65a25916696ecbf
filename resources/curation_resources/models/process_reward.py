"""Process reward models as a pass: the probability that each step of a response is right.

Two kinds: a token classifier with a separator token after each step (Qwen2.5-Math-PRM: the probability of label 1 at
that token), and a language model with a separator and two label tokens (Math-Shepherd: the probability of the good one
of the two). The steps are those of our segmentation. See docs/methods.md, "Process reward models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from curation_resources.models.reward import ConversationPass, RewardError, conversation_ids, describe_conversation
from curation_resources.scoring.samples import ANSWER, NON_FINITE, Request, Sample, SampleSignals
from curation_resources.scoring.spec import ProcessSpec


class ProcessRewardPass(ConversationPass[list[float]]):
    """Measures samples with a process reward model; the only signal is `process_rewards`.

    Raises:
        RewardError: the separator or a label is not one token, or the model is of neither kind.
        LoadingError: weights are missing.
    """

    def load(self) -> Any:
        """Return the model."""
        from curation_resources.scoring.complete_weights import load_config, load_whole  # noqa: PLC0415
        from curation_resources.scoring.loading import DTYPES  # noqa: PLC0415

        folder, trust = self._spec.model_folder, self._spec.trust_remote_code
        self._process = self._spec.process
        self._separator = separator_of(self._tokenizer, self._process, folder)
        labels = [name for name in (self._process.good, self._process.bad) if name is not None]
        loader, self._of_language = _loader(load_config(folder, trust), folder)
        if self._of_language and len(labels) < 2:
            raise RewardError(
                f"{folder} is a language model, whose rewards are probabilities of two label tokens. Name them, as in "
                'process_reward: {good: "+", bad: "-"}.'
            )
        if labels and not self._of_language:
            raise RewardError(
                f"{folder} is a token classifier, which has no label tokens. Remove process_reward.good and .bad."
            )
        self._labels = [
            _single_token(self._tokenizer, text, f"process_reward.{key}", folder)
            for key, text in zip(("good", "bad"), labels, strict=False)
        ]
        model, _ = load_whole(
            loader, folder, "a process reward model", dtype=DTYPES[self._spec.dtype], trust_remote_code=trust
        )
        return model

    def conversation(self, sample: Sample, position: int) -> tuple[list[int] | None, SampleSignals]:
        """Return a sample's tokens, and its counts and flags; zero tokens if it is not run."""
        ids, result = describe_steps(
            self._tokenizer, sample, self._process, self._separator, self._max_length, position
        )
        return ids, result

    def requested(self, request: Request) -> bool:
        """Return whether a request asks for the signal."""
        return request.process_rewards

    def read(self, logits: Any, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the probability that each step is right: [conversations][steps]."""
        import torch

        if not self._of_language and self._process.label >= logits.shape[-1]:
            raise RewardError(
                f"{self._spec.model_folder} has {logits.shape[-1]} labels, numbered from 0, and process_reward.label "
                f"is {self._process.label}. Set it to the label of right steps."
            )
        if logits.shape[-1] < 2:
            raise RewardError(
                f"{self._spec.model_folder} has a single label, so it tells no right step from a wrong one. Name a "
                "process reward model with two."
            )
        found = []
        for row, ids in enumerate(batch):
            places = [place for place, token in enumerate(ids) if token == self._separator]
            own = logits[row, torch.tensor(places, device=logits.device)].float()
            own = own[:, self._labels] if self._of_language else own
            good = own.softmax(-1)[:, 0 if self._of_language else self._process.label]
            values: list[float] = good.cpu().tolist()
            found.append(values)
        return found

    def keep(self, result: SampleSignals, value: list[float]) -> None:
        """Add a sample's rewards, or the flag of some that are not finite, to its result."""
        if np.isfinite(value).all():
            result.step_rewards = value
        else:
            result.flags.append(NON_FINITE)


def separator_of(tokenizer: Any, process: ProcessSpec, folder: Path) -> int:
    """Return the token of the separator.

    Raises:
        RewardError: it is not one token.
    """
    return _single_token(tokenizer, process.separator, "process_reward.separator", folder)


def pieces_of(sample: Sample) -> list[str]:
    """Return the texts that get a reward: the steps, and whatever follows them if the response has an answer."""
    steps = sorted((one for one in sample.segments if one.index != ANSWER), key=lambda one: one.start)
    pieces = [sample.response[step.start : step.end].strip() for step in steps]
    if steps and len(steps) < len(sample.segments):
        pieces.append(sample.response[steps[-1].end :].strip())
    return pieces


def describe_steps(
    tokenizer: Any, sample: Sample, process: ProcessSpec, separator: int, max_length: int, position: int = 0
) -> tuple[list[int] | None, SampleSignals]:
    """Return the conversation whose response is its steps with separators, and a sample's counts and flags.

    A sample that gets no rewards has zero tokens.
    """
    pieces = pieces_of(sample)
    text = "".join(
        process.step_format.replace("{separator}", process.separator).replace("{step}", piece) for piece in pieces
    )
    ids = conversation_ids(tokenizer, replace(sample, response=text))
    result = describe_conversation(tokenizer, sample, ids, max_length, position)
    if not result.flags:
        if not pieces:
            result.flags.append("no_steps")
        elif ids is None or ids.count(separator) != len(pieces):
            # The template drops a part of the response, or the text itself contains a separator.
            result.flags.append("separators_differ")
        if result.flags:
            result.tokens = 0
    result.step_indices = sorted(one.index for one in sample.segments if one.index != ANSWER)
    own = [tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in pieces]
    result.segment_tokens = [len(tokens) for tokens in own]
    return ids, result


def _single_token(tokenizer: Any, text: str, key: str, folder: Path) -> int:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise RewardError(
            f"{key} {text!r} is {len(ids) if len(ids) != 1 else 'not a'} token{'s' * (len(ids) != 1)} of the tokenizer "
            f"in {folder}; it must be exactly one. Use the text that the model was trained with, such as <extra_0> for "
            "the separator of Qwen2.5-Math-PRM."
        )
    return int(ids[0])


def _loader(config: Any, folder: Path) -> tuple[Any, bool]:
    """Return the class that loads a model, and whether it is a language model.

    Raises:
        RewardError: it is neither a token classifier nor a language model.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

    names = [str(name) for name in getattr(config, "architectures", None) or []]
    own_code = getattr(config, "auto_map", None) or {}
    if "AutoModelForTokenClassification" in own_code or any(name.endswith("ForTokenClassification") for name in names):
        return AutoModelForTokenClassification, False
    if any(name.endswith("ForProcessRewardModel") for name in names):
        # Qwen2.5-Math-PRM: a class of its own, registered as a base model.
        return AutoModel, False
    if any(name.endswith("ForCausalLM") for name in names):
        return AutoModelForCausalLM, True
    raise RewardError(
        f"{folder} is a {', '.join(names) or 'model of unknown architecture'}, not a process reward model. Name the "
        "folder of a token classifier (ForTokenClassification, ForProcessRewardModel), or of a language model with "
        "label tokens."
    )
