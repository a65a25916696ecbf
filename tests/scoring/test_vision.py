"""Samples with images, through real tiny models of three families: tokens, batches, signals."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import transformers

from curation_resources.scoring import vision
from curation_resources.scoring.collating import batch_key, collate
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.images import ImageLimits, open_image
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.samples import Encoded, ImageFile, ImageSource, Request, Sample
from tests.models import write_tiny_gemma3, write_tiny_llava, write_tiny_qwen3_vl
from tests.scoring.cases import make_sample
from tests.scoring.test_images import picture
from tests.scoring.test_loading import gram_by_autograd

Turns = Sequence[dict[str, str]]

WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl": write_tiny_qwen3_vl,
    "llava": write_tiny_llava,
    "gemma3": write_tiny_gemma3,
}
IMAGE_TOKENS = {"qwen3_vl": "<|image_pad|>", "llava": "<image>", "gemma3": "<image_soft_token>"}
# Of a picture of 40 x 30 pixels. Qwen3-VL: scaled to 32 x 24, a token for every 8 x 8.
TOKENS_PER_IMAGE = {"qwen3_vl": 12, "llava": 9, "gemma3": 4}
ASK: Turns = [{"role": "user", "content": "<image>How many?"}]


@dataclasses.dataclass(frozen=True)
class Family:
    name: str
    folder: Path
    checkpoint: Checkpoint

    def encoder(self, template: Any = "auto", limits: ImageLimits | None = None, length: int = 2048) -> Encoder:
        c = self.checkpoint
        return Encoder(c.tokenizer, template, length, processor=c.processor, vocabulary=c.vocabulary, limits=limits)

    def image_tokens(self, encoded: Encoded) -> int:
        return encoded.input_ids.count(self.checkpoint.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS[self.name]))


@pytest.fixture(scope="module", params=WRITERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = WRITERS[request.param](tmp_path_factory.mktemp(request.param))
    return Family(request.param, folder, load_checkpoint(folder, device="cpu"))


def with_images(images: Sequence[ImageSource], turns: Turns = ASK, steps: Sequence[str] = ("two", "größer")) -> Sample:
    return dataclasses.replace(make_sample(steps, "42"), messages=turns, images=images)


def mixed_samples() -> list[Sample]:
    """Text only, one image, two images in two turns, images of other shapes; of different lengths."""
    user = {"role": "user", "content": "<image>And this?"}
    return [
        make_sample(["two and two"] * 5, "42"),
        with_images([picture()]),
        with_images([picture(30, 64), picture(12, 90)], [*ASK, {"role": "assistant", "content": "2"}, user]),
        with_images([picture(64, 64)], steps=["one"] * 9),
        make_sample(["two"], "4"),
    ]


def test_image_tokens_are_prompt_tokens(family: Family) -> None:
    (encoded,) = family.encoder().encode([with_images([picture()])])
    assert encoded.flags == ()
    assert family.image_tokens(encoded) == TOKENS_PER_IMAGE[family.name]
    image = family.checkpoint.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS[family.name])
    places = [position for position, token in enumerate(encoded.input_ids) if token == image]
    assert max(places) < encoded.prompt_tokens
    assert {encoded.segment_of_token[position] for position in places} == {-1}
    assert encoded.response_tokens == len(encoded.sample.response.encode())
    assert len(encoded) == encoded.prompt_tokens + encoded.response_tokens + 1


def test_every_segment_gets_the_tokens_of_its_text(family: Family) -> None:
    for encoded in family.encoder().encode(mixed_samples()):
        owners = encoded.segment_of_token
        for segment in encoded.sample.segments:
            ids = [token for token, owner in zip(encoded.input_ids, owners, strict=True) if owner == segment.index]
            text = encoded.sample.response[segment.start : segment.end]
            assert family.checkpoint.tokenizer.decode(ids) == text


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_hidden_states_in_a_padded_batch_equal_those_alone(family: Family, template: str) -> None:
    batch = family.encoder(template).encode(mixed_samples())
    device = family.checkpoint.device
    with torch.no_grad():
        together = family.checkpoint.decoder(**collate(batch, device), use_cache=False).last_hidden_state
        for row, encoded in enumerate(batch):
            alone = family.checkpoint.decoder(**collate([encoded], device), use_cache=False).last_hidden_state
            torch.testing.assert_close(together[row, : len(encoded)], alone[0], rtol=1e-4, atol=1e-5)


def test_logits_equal_those_of_the_whole_model_with_the_plain_processor(family: Family) -> None:
    processor, head = family.checkpoint.processor, family.checkpoint.head
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(family.folder).eval()
    for encoded in family.encoder().encode(mixed_samples()[1:4]):
        turns = vision.turns_in_parts(encoded.sample)
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        images = [open_image(source, ImageLimits()) for source in encoded.sample.images]
        inputs = processor(images=images, text=[prompt + encoded.sample.response + "<eos>"], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == encoded.input_ids
        with torch.no_grad():
            expected = model(**inputs).logits[0]
            batch = collate([encoded], family.checkpoint.device)
            hidden = family.checkpoint.decoder(**batch, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(hidden @ head.weight.T, expected, rtol=1e-5, atol=1e-5)


def test_images_change_what_the_model_sees(family: Family) -> None:
    batch = family.encoder().encode([with_images([picture(40, 30, mode=mode)]) for mode in ("RGB", "L")])
    with torch.no_grad():
        states = family.checkpoint.decoder(**collate(batch, family.checkpoint.device)).last_hidden_state
    assert batch[0].input_ids == batch[1].input_ids
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_path_bytes_and_data_url_give_the_same(family: Family, tmp_path: Path) -> None:
    content = picture()
    (tmp_path / "a.png").write_bytes(content)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    sources: list[ImageSource] = [content, ImageFile(str(tmp_path), "a.png"), url]
    first, *others = family.encoder().encode([with_images([source]) for source in sources])
    for other in others:
        assert other.input_ids == first.input_ids
        assert other.model_inputs.keys() == first.model_inputs.keys()
        for name, tensor in other.model_inputs.items():
            assert torch.equal(tensor, first.model_inputs[name])


def test_where_images_are_shown() -> None:
    system = {"role": "system", "content": "Look."}
    image, text = {"type": "image"}, [{"type": "text", "text": "Which?"}]
    sample = with_images([b"", b""], [system, {"role": "user", "content": "Which?"}])
    assert [turn["content"] for turn in vision.turns_in_parts(sample)] == [
        [{"type": "text", "text": "Look."}],
        [image, image, *text],
    ]
    sample = with_images([b"", b""], [{"role": "user", "content": "a<image>b<image>"}])
    assert vision.turns_in_parts(sample)[0]["content"] == [
        {"type": "text", "text": "a"},
        image,
        {"type": "text", "text": "b"},
        image,
    ]


@pytest.mark.parametrize(
    ("turns", "response"),
    [
        ([{"role": "user", "content": "<image><image>?"}], "2"),
        ([{"role": "system", "content": "nobody to show it to"}], "2"),
        (ASK, "A literal token: {token}"),
        ([{"role": "user", "content": "<image>What is {mark}?"}], "2"),
    ],
)
def test_images_that_do_not_match_their_marks(family: Family, turns: Turns, response: str) -> None:
    token = IMAGE_TOKENS[family.name]
    mark = vision.placeholder_token(family.checkpoint.processor)
    turns = [turn | {"content": turn["content"].replace("{mark}", mark)} for turn in turns]
    sample = Sample("s", turns, response.replace("{token}", token), images=[picture()])
    (encoded,) = family.encoder().encode([sample])
    assert (encoded.flags, encoded.input_ids) == (("image_count_mismatch",), [])


def test_a_text_that_says_an_image_token_is_not_taken_for_an_image(family: Family) -> None:
    (encoded,) = family.encoder().encode([Sample("s", [{"role": "user", "content": IMAGE_TOKENS[family.name]}], "2")])
    assert encoded.flags == ("image_count_mismatch",)


def test_bad_images_are_flagged_and_leave_the_others_alone(family: Family, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.png").write_bytes(picture())
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "outside.png")
    root = str(tmp_path / "root")
    bad: list[tuple[ImageSource, str]] = [
        (ImageFile(root, "missing.png"), "image_missing"),
        (ImageFile(root, "../outside.png"), "image_outside_folder"),
        (ImageFile(root, str(tmp_path / "outside.png")), "image_outside_folder"),
        (ImageFile(root, "link.png"), "image_outside_folder"),
        (b"no image", "image_unreadable"),
        (picture(200, 100), "image_too_large"),
        ("https://example.org/a.png", "image_remote"),
    ]
    good = with_images([picture()])
    samples = [good, *(with_images([source]) for source, _ in bad), make_sample(["two"], "2"), good]
    encoder = family.encoder(limits=ImageLimits(pixels=10_000))
    encoded = encoder.encode(samples)
    assert [item.flags for item in encoded] == [(), *((flag,) for _, flag in bad), (), ()]
    assert encoded[0].input_ids == encoded[-1].input_ids == encoder.encode([good])[0].input_ids
    results = ForwardPass(family.checkpoint, encoder).measure(samples, Request(likelihoods=True))
    assert [result.likelihoods is None for result in results] == [bool(item.flags) for item in encoded]
    assert results[0].likelihoods == results[-1].likelihoods


def test_an_image_that_the_processor_refuses(family: Family) -> None:
    # Qwen-VL takes no image that is more than 200 times as wide as high; the others scale it.
    (encoded,) = family.encoder().encode([with_images([picture(402, 2)])])
    assert encoded.flags == (("image_unreadable",) if family.name == "qwen3_vl" else ())


def test_truncation_never_cuts_into_the_images(family: Family) -> None:
    (whole,) = family.encoder().encode([with_images([picture()])])
    (cut,) = family.encoder(length=whole.prompt_tokens + 4).encode([whole.sample])
    assert cut.flags == ("truncated",)
    assert cut.input_ids == whole.input_ids[: len(cut)]
    with torch.no_grad():
        states = family.checkpoint.decoder(**collate([cut], family.checkpoint.device)).last_hidden_state
    assert states.shape[1] == whole.prompt_tokens + 4
    (short,) = family.encoder(length=whole.prompt_tokens).encode([whole.sample])
    assert (short.flags, dict(short.model_inputs)) == (("prompt_too_long",), {})


def test_plain_template_shows_images_where_they_are(family: Family) -> None:
    (encoded,) = family.encoder("plain").encode([with_images([picture()], [{"role": "user", "content": "a<image>b"}])])
    text = family.checkpoint.tokenizer.decode(encoded.input_ids)
    assert family.image_tokens(encoded) == TOKENS_PER_IMAGE[family.name]
    before, after = text.split(IMAGE_TOKENS[family.name])[0], text.split(IMAGE_TOKENS[family.name])[-1]
    assert before.replace("<eos>", "").startswith("a")
    assert after.replace("<|vision_end|>", "").replace("<end_of_image>", "").lstrip().startswith("b\ntwo")


def test_a_chat_template_that_reads_text_only_gets_the_marks_in_the_text(family: Family) -> None:
    encoder = family.encoder()
    plain = "{% for m in messages %}[{{ m['content'] + ']' }}{% endfor %}"
    encoder._template, encoder._parts = plain, None  # type: ignore[assignment]
    encoder._parts = encoder._reads_parts()
    assert not encoder._parts
    (encoded,) = encoder.encode([with_images([picture()])])
    assert encoded.flags == ()
    assert family.image_tokens(encoded) == TOKENS_PER_IMAGE[family.name]


def test_samples_share_batches_only_if_their_inputs_fit_together(family: Family) -> None:
    encoded = family.encoder().encode(mixed_samples())
    keys = [batch_key(item) for item in encoded]
    assert keys[0] == keys[4] == ()
    assert keys[1] == keys[2] == keys[3] != ()
    other = dataclasses.replace(encoded[1], model_inputs={"pixel_values": torch.zeros(1, 3, 8, 8)})
    assert batch_key(other) != keys[1]


def test_threads_may_share_an_encoder(family: Family) -> None:
    encoder = family.encoder()
    samples = [with_images([picture(20 + 7 * number, 40)], steps=["two"] * (number + 1)) for number in range(8)]
    alone = [encoder.encode([sample])[0] for sample in samples]
    with ThreadPoolExecutor(4) as executor:
        together = [encoded for (encoded,) in executor.map(encoder.encode, [[sample] for sample in samples * 5])]
    for number, encoded in enumerate(together):
        expected = alone[number % len(samples)]
        assert encoded.input_ids == expected.input_ids
        assert torch.equal(encoded.model_inputs["pixel_values"], expected.model_inputs["pixel_values"])


def test_half_precision_runs(family: Family) -> None:
    checkpoint = load_checkpoint(family.folder, device="cpu", dtype="bfloat16")
    results = ForwardPass(checkpoint, family.encoder()).measure(
        mixed_samples(), Request(step_gradients="bias", likelihoods=True)
    )
    assert all(result.step_gradients and result.likelihoods for result in results)


def puzzles(folder: Path, count: int | None = None) -> list[Sample]:
    """PuzzleVQA: caption, explanation and deduction as steps, then the answer; `count` rows of all puzzles."""
    rows = [orjson.loads(line) for line in (folder / "sample.jsonl").read_bytes().splitlines()]
    rows = rows if count is None else rows[:: len(rows) // count][:count]
    samples = []
    for number, row in enumerate(rows):
        sample = make_sample(
            [row["caption"], row["explanation"], row["deduction"]], str(row["answer"]), name=str(number)
        )
        turns = [{"role": "user", "content": f"<image>\n{row['question']} Options: {row['options']}"}]
        samples.append(dataclasses.replace(sample, messages=turns, images=[ImageFile(str(folder), row["image"])]))
    return samples


@pytest.mark.data
def test_all_puzzles_encode_with_their_rationale(family: Family, real_data: Path) -> None:
    samples = puzzles(real_data / "puzzlevqa")
    assert len(samples) == 200
    tokenizer = family.checkpoint.tokenizer
    for encoded in family.encoder().encode(samples):
        assert encoded.flags == ()
        assert family.image_tokens(encoded) > 0
        assert set(encoded.segment_of_token) == {-1, 0, 1, 2, 3}
        for segment in encoded.sample.segments:
            owned = [place for place, owner in enumerate(encoded.segment_of_token) if owner == segment.index]
            assert min(owned) >= encoded.prompt_tokens
            text = encoded.sample.response[segment.start : segment.end]
            assert tokenizer.decode([encoded.input_ids[place] for place in owned]) == text


def _agree_with_the_whole_model(family: Family, samples: list[Sample]) -> None:
    """Gradients and likelihoods in batches equal the definition, a sample at a time through the whole model."""
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(family.folder).eval()
    encoder, request = family.encoder(), Request(step_gradients="bias", likelihoods=True)
    alone = ForwardPass(family.checkpoint, encoder, batch_tokens=1).measure(samples, request)
    batched = ForwardPass(family.checkpoint, encoder, batch_tokens=8192).measure(samples, request)
    for encoded, one, other in zip(encoder.encode(samples), alone, batched, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded.input_ids]), **encoded.model_inputs).logits[0]
        begin, end = encoded.prompt_tokens, encoded.prompt_tokens + encoded.response_tokens
        nll = torch.nn.functional.cross_entropy(logits[begin - 1 : end - 1], torch.tensor(encoded.input_ids[begin:end]))
        gram = gram_by_autograd(model, encoded)
        for result in (one, other):
            assert result.flags == []
            assert result.step_gradients is not None
            assert result.likelihoods is not None
            assert result.step_gradients.gram == pytest.approx(gram, rel=1e-3, abs=1e-6)
            assert result.likelihoods.mean_nll == pytest.approx(nll.item(), rel=1e-5)


def test_signals_of_mixed_samples_equal_the_whole_model(family: Family) -> None:
    _agree_with_the_whole_model(family, mixed_samples())


@pytest.mark.data
def test_signals_of_puzzles_equal_the_whole_model(family: Family, real_data: Path) -> None:
    _agree_with_the_whole_model(family, puzzles(real_data / "puzzlevqa", 20))


@pytest.mark.data
@pytest.mark.slow
def test_signals_of_many_puzzles_equal_the_whole_model(family: Family, real_data: Path) -> None:
    every = 1 if family.name == "qwen3_vl" else 5
    _agree_with_the_whole_model(family, puzzles(real_data / "puzzlevqa")[::every])
