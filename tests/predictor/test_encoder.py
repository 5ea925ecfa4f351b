from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from predictor.encoder import (
    DEFAULT_ENCODER,
    EncoderError,
    EncoderSpec,
    TextEncoder,
    encoder_source,
)
from predictor.excerpt import excerpt
from tests.predictor.networks import CLS, HIDDEN, LAYERS, POSITIONS, SEP, make_encoder, make_spec

FIRST_WORD = 4  # Its id; words follow one another.


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{index}" for index in range(start, start + count))


def ids(*numbers: int) -> list[int]:
    return [CLS, *(FIRST_WORD + number for number in numbers), SEP]


def test_a_short_text_keeps_every_token(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path))
    assert encoder.tokens([words(14), words(3)]) == [ids(*range(14)), ids(0, 1, 2)]


def test_of_a_long_text_exactly_head_and_tail_are_kept(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path))
    head, tail = range(16 - 2 - 4), range(300 - 4, 300)
    assert encoder.tokens([words(300)]) == [ids(*head, *tail)]
    assert encoder.tokens([words(15)]) == [ids(*head, 11, 12, 13, 14)]


def test_without_a_tail_only_the_head_is_read(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path, tail_tokens=0))
    assert encoder.tokens([words(300)]) == [ids(*range(14))]


def test_a_text_of_100_000_tokens_is_read_as_its_excerpt(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path))
    text = " ".join([words(500)] * 200)
    tokens = encoder.tokens([text])
    assert tokens == encoder.tokens([excerpt(text)])
    assert tokens == [ids(*range(10), *range(496, 500))]
    np.testing.assert_array_equal(encoder.pooled([text]), encoder.pooled([excerpt(text)]))


def test_features_are_those_of_the_kept_tokens_whatever_shares_the_pass(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path))
    texts = [words(count, start=count) for count in (300, 1, 14, 0, 5, 90, 2)]
    together = encoder.pooled(texts)
    alone = torch.cat([encoder.pool(encoder.tokens([text])) for text in texts]).numpy()
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.pooled(texts, batch_size=2), alone, atol=1e-5)
    assert np.ptp(together, axis=0).min() > 1e-3  # The texts differ, so order matters.


@pytest.mark.parametrize("layers", [(-1,), (-2,), (1, 3), (0,)])
def test_pooling_is_first_mean_and_maximum_of_the_named_layers(
    tmp_path: Path, layers: tuple[int, ...]
) -> None:
    spec = make_spec(tmp_path, layers=layers)
    model = AutoModel.from_pretrained(spec.name)
    tokens = AutoTokenizer.from_pretrained(spec.name)(words(6), return_tensors="pt")
    with torch.no_grad():
        states = model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            output_hidden_states=True,
        ).hidden_states
    expected = np.concatenate(
        [
            part.numpy()
            for layer in layers
            for part in (states[layer][0, 0], states[layer][0].mean(0), states[layer][0].amax(0))
        ]
    )
    encoder = TextEncoder(spec)
    assert encoder.width == 3 * HIDDEN * len(layers) == len(expected)
    # With a longer neighbour, so that padding is there to be ignored.
    np.testing.assert_allclose(encoder.pooled([words(6), words(14)])[0], expected, atol=1e-5)


def test_low_precision_moves_features_little(tmp_path: Path) -> None:
    texts = [words(count, start=count) for count in (3, 9, 30)]
    whole = TextEncoder(make_spec(tmp_path)).pooled(texts)
    low = TextEncoder(make_spec(tmp_path, precision="bfloat16")).pooled(texts)
    assert 0 < np.abs(low - whole).mean() < 0.03 * np.abs(whole).mean()


def test_progress_adds_up(tmp_path: Path) -> None:
    steps: list[int] = []
    TextEncoder(make_spec(tmp_path)).pooled([words(3)] * 7, batch_size=3, advance=steps.append)
    assert sum(steps) == 7
    assert max(steps) <= 3


def test_texts_of_different_lengths_do_not_share_a_pass_on_a_cpu(tmp_path: Path) -> None:
    encoder, steps = TextEncoder(make_spec(tmp_path, max_tokens=POSITIONS)), []
    encoder.pooled([words(1), words(60), words(2), words(61)], advance=steps.append)
    assert steps == [2, 2]


@pytest.mark.parametrize(
    "text", ["", "   ", "\x00", "\ud800", "a\udfffb", "\u200b", "w1 " * 50_000]
)
def test_strange_texts_have_finite_features(tmp_path: Path, text: str) -> None:
    assert np.isfinite(TextEncoder(make_spec(tmp_path)).pooled([text])).all()


def test_no_texts_have_no_features(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path))
    assert encoder.pooled([]).shape == (0, encoder.width)


@pytest.mark.parametrize("bad", [None, 7, b"bytes", ["list"]])
def test_what_is_no_text_is_named_by_its_row(tmp_path: Path, bad: object) -> None:
    with pytest.raises(EncoderError, match=f"text 1 is a {type(bad).__name__}"):
        TextEncoder(make_spec(tmp_path)).pooled(["w1", bad])  # type: ignore[list-item]


def test_tuned_layers_travel_and_gradients_reach_them_alone(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, layers=(-1,))
    tuned, fresh = TextEncoder(spec), TextEncoder(spec)
    before = fresh.pooled([words(5)])
    parameters = tuned.tunable(1)
    tuned.pool(tuned.tokens([words(5)])).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1)
    state = tuned.tuned_state()
    assert len(state) == len(parameters)
    assert all(f"layer.{LAYERS - 1}." in name for name in state)
    after = tuned.pooled([words(5)])
    assert np.abs(after - before).max() > 1e-3
    fresh.load_tuned(state)
    np.testing.assert_array_equal(fresh.pooled([words(5)]), after)


def test_tuned_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path))
    before = encoder.pooled([words(5)])
    encoder.tunable(1)
    good = encoder.tuned_state()
    name = next(iter(good))
    for weight, message in (
        (torch.full_like(good[name], torch.nan), "not finite"),
        (torch.zeros(1, 2, 3), "does not fit"),
    ):
        with pytest.raises(EncoderError, match=message):
            encoder.load_tuned({key: value + 1 for key, value in good.items()} | {name: weight})
        np.testing.assert_array_equal(encoder.pooled([words(5)]), before)
    with pytest.raises(EncoderError, match="no such weight"):
        encoder.load_tuned({"elsewhere": torch.zeros(1)})


def test_layers_above_the_pooled_ones_are_not_there(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path, layers=(-2,)))
    with pytest.raises(EncoderError, match=f"it runs {LAYERS - 1}; choose"):
        encoder.tunable(LAYERS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": POSITIONS + 1}, f"reads at most {POSITIONS}"),
        ({"max_tokens": 5, "tail_tokens": 3}, "no room for a head"),
        ({"max_tokens": 8, "tail_tokens": 8}, "tail_tokens < max_tokens"),
        ({"layers": (LAYERS + 1,)}, f"has 0..{LAYERS}"),
        ({"layers": ()}, "layers are empty"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(EncoderError, match=message):
        TextEncoder(make_spec(tmp_path, **changes))


def test_an_encoder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"without config\.json"):
        TextEncoder(EncoderSpec(name=str(tmp_path)))
    with pytest.raises(EncoderError, match="no encoder folder"):
        encoder_source(str(tmp_path / "missing"))
    folder = tmp_path / "damaged"
    make_encoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="cannot be loaded"):
        TextEncoder(EncoderSpec(name=str(folder)))


def test_the_default_encoder_is_installed_and_reads_meaning() -> None:
    encoder = TextEncoder(EncoderSpec(DEFAULT_ENCODER, layers=(-1,)))
    mean = encoder.pooled(
        ["Write a poem about the sea.", "Compose verses on the ocean.", "Fix this SQL query."]
    )[:, encoder.width // 3 : 2 * encoder.width // 3]
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.3


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_text_has_tokens_within_the_limit(texts: list[str]) -> None:
    for tokens in _default().tokens(texts):
        assert 2 <= len(tokens) <= 256


_encoders: list[TextEncoder] = []


def _default() -> TextEncoder:
    if not _encoders:
        _encoders.append(TextEncoder(EncoderSpec()))
    return _encoders[0]
