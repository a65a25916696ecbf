"""Generate responses in batches, by greedy decoding or sampling.

The encoder that measures and trains on samples also tokenizes prompts, so the model sees the format that it was trained
on. Needs torch and transformers, imported inside functions, and no other part of the data stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.batching import plan_batches
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.samples import Encoded, Sample
from curation_resources.scoring.spec import Sampling, Template

if TYPE_CHECKING:
    from curation_resources.scoring.encoding import Encoder
    from curation_resources.scoring.loading import Checkpoint

NO_RESPONSE = "empty_response"
"""The flag that the encoder sets on samples without a response, as all prompts here are."""


class GenerationError(ScoringError):
    """A model cannot generate."""


@dataclass(frozen=True)
class GenerationSpec:
    """The model to generate with, and its settings.

    Attributes:
        model_folder: transformers model folder.
        adapter: peft LoRA folder over it.
        template: see `curation_resources.scoring.encoding.Encoder`.
        max_length: longest sequence in tokens, prompt and answer together; None: the model's context.
        max_new_tokens: tokens after which an answer is cut off.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: of the weights.
        trust_remote_code: run Python code that the folder ships.
        attention: see `curation_resources.scoring.loading.load_checkpoint`.
        batch_tokens: prompt and answer tokens of a batch, padding included; affects memory only.
    """

    model_folder: Path
    adapter: Path | None = None
    template: Template = "auto"
    max_length: int | None = None
    max_new_tokens: int = 512
    device: str = "auto"
    dtype: str = "float32"
    trust_remote_code: bool = False
    attention: str = "auto"
    batch_tokens: int = 16384


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Attributes:
        text: the generated text, without EOS and other special tokens.
        tokens: number of generated tokens, EOS included.
        finished: the model ended the answer itself.
        flag: why the prompt could not be used (a key of `scoring.samples.UNRUNNABLE`); None if it was.
    """

    text: str
    tokens: int
    finished: bool
    flag: str | None = None


class Generator:
    """A loaded model that answers prompts, by greedy decoding or sampling.

    Answers do not depend on the order of prompts or on the composition of batches (except where two tokens are almost
    equally likely, or a drawn number is almost at the boundary between two). Settings for sampling, penalties and
    lengths
    in the model's folder are ignored.

    Args:
        checkpoint: the model.
        encoder: tokenizes prompts.
        max_new_tokens: tokens after which an answer is cut off.
        batch_tokens: prompt and answer tokens of a batch, padding included.
    """

    def __init__(
        self, checkpoint: Checkpoint, encoder: Encoder, max_new_tokens: int = 512, batch_tokens: int = 16384
    ) -> None:
        self.checkpoint, self.encoder = checkpoint, encoder
        self.max_new_tokens, self.batch_tokens = max_new_tokens, batch_tokens
        self.ends = _end_tokens(checkpoint)

    def generate(
        self,
        prompts: Sequence[Sequence[dict[str, str]]],
        progress: Callable[[int], None] | None = None,
        sampling: Sampling | None = None,
        names: Sequence[str] = (),
    ) -> list[Generated]:
        """Return the answers to prompts, in the same order.

        Args:
            prompts: the turns of each, `{"role": ..., "content": ...}`.
            progress: called with the number of prompts that were answered since the last call.
            sampling: sampling settings; None: greedy decoding.
            names: a key for each answer that seeds its random draws under `sampling`.

        Raises:
            GenerationError: a single prompt does not fit into the device's memory.
        """
        encoded = self.encoder.encode([Sample(str(n), list(turns), "") for n, turns in enumerate(prompts)])
        found: dict[int, Generated] = {}
        asked: list[int] = []
        for position, item in enumerate(encoded):
            flag = self._refusal(item)
            if flag is None:
                asked.append(position)
            else:
                found[position] = Generated("", 0, False, flag)
        report = progress or _ignore_progress
        report(len(found))
        ids = {position: encoded[position].input_ids[: encoded[position].prompt_tokens] for position in asked}
        lengths = [len(ids[position]) + self._answer_limit(len(ids[position])) for position in asked]
        for batch in plan_batches(lengths, self.batch_tokens):
            positions = [asked[place] for place in batch]
            own = None if sampling is None else (sampling, [names[position] for position in positions])
            answers = self._answers([ids[position] for position in positions], own)
            found |= dict(zip(positions, answers, strict=True))
            report(len(batch))
        return [found[position] for position in range(len(prompts))]

    def _refusal(self, encoded: Encoded) -> str | None:
        """Return the flag of a prompt that cannot be used, or None."""
        wrong = next((flag for flag in encoded.flags if flag != NO_RESPONSE), None)
        if wrong is None and not 0 < encoded.prompt_tokens < self.encoder.max_length:
            return "prompt_too_long" if encoded.prompt_tokens else NO_RESPONSE
        return wrong

    def _answer_limit(self, prompt: int) -> int:
        """Return the maximum tokens of an answer to a prompt of this length."""
        return min(self.max_new_tokens, self.encoder.max_length - prompt)

    def _answers(self, prompts: list[list[int]], draws: tuple[Sampling, list[str]] | None) -> list[Generated]:
        """Return the answers to a batch; a batch that does not fit into memory is split in half."""
        tokens = self._try(prompts, draws)
        if tokens is not None:
            return [self._cut(new, self._answer_limit(len(ids))) for ids, new in zip(prompts, tokens, strict=True)]
        half = len(prompts) // 2
        first, second = (None, None) if draws is None else ((draws[0], draws[1][:half]), (draws[0], draws[1][half:]))
        return self._answers(prompts[:half], first) + self._answers(prompts[half:], second)

    def _try(self, prompts: list[list[int]], draws: tuple[Sampling, list[str]] | None) -> list[list[int]] | None:
        from curation_resources.scoring.forward import attempted  # noqa: PLC0415

        alone = GenerationError(
            f"a prompt of {len(prompts[0])} tokens and its answer do not fit into the memory of "
            f"{self.checkpoint.device}. Lower max_new_tokens, or use a smaller dtype."
        )
        run = partial(self._run, prompts, draws)
        return attempted(run, self.checkpoint.device, alone if len(prompts) == 1 else None)

    def _run(self, prompts: list[list[int]], draws: tuple[Sampling, list[str]] | None) -> list[list[int]]:
        """Return each prompt's new tokens, including padding after the end of an answer."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        from curation_resources.scoring.sampling import DrawTokens  # noqa: PLC0415

        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.ends[0], dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        most = max(self._answer_limit(len(prompt)) for prompt in prompts)
        processors = LogitsProcessorList()
        if draws is not None:
            numbers = [draws[0].numbers(name, most) for name in draws[1]]
            processors.append(DrawTokens(draws[0], numbers, longest))
        options: Any = GenerationConfig(
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(self.ends),
            pad_token_id=self.ends[0],
        )
        model = self.checkpoint.model
        # transformers fills unset options from the model's own configuration, penalties among them.
        own, model.generation_config = model.generation_config, options
        device = self.checkpoint.device
        try:
            with torch.inference_mode():
                made = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=options,
                    logits_processor=processors,
                )
        finally:
            model.generation_config = own
        new: list[list[int]] = made[:, longest:].tolist()
        return new

    def _cut(self, tokens: list[int], room: int) -> Generated:
        """Cut an answer at its own end or limit, which does not depend on the other answers of the batch."""
        end = next((place for place, token in enumerate(tokens[:room]) if token in self.ends), None)
        own = tokens[:room] if end is None else tokens[:end]
        text = self.checkpoint.tokenizer.decode(own, skip_special_tokens=True)
        return Generated(str(text), len(own) + (end is not None), end is not None)


def open_generator(spec: GenerationSpec) -> Generator:
    """Load a model for generation.

    Raises:
        ScoringError: the model, its adapter or its tokenizer cannot be used.
    """
    quieten_transformers()
    from curation_resources.scoring.encoding import Encoder  # noqa: PLC0415
    from curation_resources.scoring.loading import load_checkpoint  # noqa: PLC0415

    checkpoint = load_checkpoint(
        spec.model_folder,
        spec.adapter,
        device=spec.device,
        dtype=spec.dtype,
        max_length=spec.max_length,
        trust_remote_code=spec.trust_remote_code,
        attention=spec.attention,
    )
    encoder = Encoder(
        checkpoint.tokenizer,
        spec.template,
        checkpoint.max_length,
        processor=checkpoint.processor,
        vocabulary=checkpoint.vocabulary,
    )
    return Generator(checkpoint, encoder, spec.max_new_tokens, spec.batch_tokens)


def _end_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the tokens that end an answer: the tokenizer's EOS (as in training), then those of the model's folder.

    Raises:
        GenerationError: there is none.
    """
    named = getattr(checkpoint.model.generation_config, "eos_token_id", None)
    own = [named] if isinstance(named, int) else _numbers(named)
    ends = dict.fromkeys([*_numbers([checkpoint.tokenizer.eos_token_id]), *own])
    if not ends:
        raise GenerationError("the tokenizer has no EOS token, so answers would never end. Set its eos_token.")
    return tuple(ends)


def _numbers(values: Iterable[object] | None) -> list[int]:
    return [value for value in values or () if isinstance(value, int)]


def _ignore_progress(_count: int) -> None:
    """Ignore progress."""
