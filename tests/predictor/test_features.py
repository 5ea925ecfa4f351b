import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.encoder import Features
from predictor.features import (
    SCALAR_NAMES,
    FeaturesError,
    InputScaler,
    InputScalerState,
    raw_scalars,
)
from predictor.lexical import LEXICAL_NAMES, lexical_features
from predictor.prompts import Prompts
from tests.predictor.networks import make_prompts

ROWS, WIDTH = 60, 5


def make_pooled(rows: int = ROWS, seed: int = 0) -> Features:
    pooled = np.random.default_rng(seed).normal(3.0, 2.0, (rows, WIDTH)).astype(np.float32)
    pooled[:, 0] = 7.0
    return pooled


def make_training(seed: int = 0) -> Prompts:
    rng = np.random.default_rng(seed)
    return make_prompts(
        [" ".join(["word?"] * int(count)) for count in rng.integers(1, 40, ROWS)],
        model=[("b", "a", "c")[row % 3] for row in range(ROWS)],
        prompt_tokens=rng.integers(1, 500, ROWS),
        max_tokens=rng.integers(0, 2, ROWS) * rng.integers(10, 1000, ROWS),
        temperature=rng.uniform(0, 1, ROWS),
    )


def at(name: str) -> int:
    return SCALAR_NAMES.index(name)


def test_training_prompts_have_mean_0_and_deviation_1_and_constants_are_0() -> None:
    prompts, pooled = make_training(), make_pooled()
    inputs = InputScaler.fit(prompts, pooled, without=())(prompts, pooled)
    once = list({text: row for row, text in enumerate(prompts.text)}.values())
    assert len(once) < len(prompts)
    for z, constant in ((inputs.text[once].double(), [0]), (inputs.scalars.double(), None)):
        spread = z.std(dim=0, correction=0)
        assert ((spread == 0) | ((spread - 1).abs() < 1e-2)).all()
        assert z.mean(dim=0).abs().max() < 1e-2
        if constant is not None:
            assert (z[:, constant] == 0).all()
            assert (spread > 0).sum() == WIDTH - len(constant)
    for name in ("log_prompt_tokens", "log_max_tokens", "temperature", "log_words"):
        assert inputs.scalars[:, at(name)].std() > 0.9


def test_an_unknown_cap_is_the_mean() -> None:
    prompts = make_training()
    scaler = InputScaler.fit(prompts, make_pooled())
    known = prompts.max_tokens > 0
    assert not known.all()
    z = scaler.scalars(prompts)[:, at("log_max_tokens")].numpy()
    assert np.abs(z[~known]).max() < 1e-6
    assert np.abs(z[known]).min() > 1e-6


def test_caps_that_are_never_known_do_no_harm() -> None:
    prompts = make_prompts(["a b", "c"], max_tokens=[0, 0])
    scaler = InputScaler.fit(prompts, make_pooled(2))
    assert (scaler.scalars(prompts)[:, at("log_max_tokens")] == 0).all()
    later = make_prompts(["a b"], max_tokens=[4096])
    assert (scaler.scalars(later)[:, at("log_max_tokens")] == 0).all()


def test_scalars_out_of_the_range_seen_count_as_its_end() -> None:
    prompts = make_training()
    scaler = InputScaler.fit(prompts, make_pooled(), without=())
    longest = int(prompts.prompt_tokens.argmax())
    end = scaler.scalars(prompts)[longest, at("log_prompt_tokens")]
    beyond = make_prompts(["word"], prompt_tokens=[10**7])
    assert scaler.scalars(beyond)[0, at("log_prompt_tokens")] == end


def test_nothing_lies_further_than_four_deviations_out() -> None:
    prompts, pooled = make_training(), make_pooled()
    scaler = InputScaler.fit(prompts, pooled)
    wild = scaler.text(torch.full((1, WIDTH), 1e6))
    assert wild[0, 1:].eq(4.0).all()
    rare = make_prompts(["word"] * 99 + ["translate"])
    z = InputScaler.fit(rare, make_pooled(100)).scalars(rare)
    assert z.abs().max() == 4.0


def test_prompt_tokens_are_left_out_unless_asked_for() -> None:
    prompts = make_training()
    z = InputScaler.fit(prompts, make_pooled()).scalars(prompts)
    assert (z[:, at("log_prompt_tokens")] == 0).all()
    assert (z[:, at("temperature")] != 0).any()
    with pytest.raises(FeaturesError, match="no scalars"):
        InputScaler.fit(prompts, make_pooled(), without=["nonsense"])


def test_models_have_their_index_and_others_none() -> None:
    scaler = InputScaler.fit(make_training(), make_pooled())
    assert scaler.models == ("a", "b", "c")
    asked = make_prompts([""] * 4, model=["c", "stranger", "a", "b"])
    assert scaler.model(asked).tolist() == [3, 0, 1, 2]


def test_the_raw_scalars_are_those_of_the_text_then_the_request() -> None:
    prompts = make_prompts(
        ["one two", "three", "one two"],
        prompt_tokens=[5, 6, 7],
        max_tokens=[0, 9, 8],
        temperature=[0.0, 0.5, 1.0],
    )
    raw = raw_scalars(prompts)
    np.testing.assert_array_equal(raw[0, : len(LEXICAL_NAMES)], lexical_features("one two"))
    np.testing.assert_allclose(
        raw[:, len(LEXICAL_NAMES) :],
        [[np.log(5), np.nan, 0.0], [np.log(6), np.log(9), 0.5], [np.log(7), np.log(8), 1.0]],
    )


def test_a_state_makes_the_same_scaler() -> None:
    prompts, pooled = make_training(), make_pooled()
    scaler = InputScaler.fit(prompts, pooled)
    again = msgspec.json.decode(msgspec.json.encode(scaler.state), type=InputScalerState)
    one, other = scaler(prompts, pooled), InputScaler(again)(prompts, pooled)
    for name in ("text", "scalars", "model"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_text_is_scaled_with_a_gradient() -> None:
    scaler = InputScaler.fit(make_training(), make_pooled())
    pooled = torch.full((2, WIDTH), 3.0, requires_grad=True)
    scaler.text(pooled).sum().backward()
    assert pooled.grad is not None
    assert (pooled.grad[:, 1:] > 0).all()


@given(st.lists(st.integers(0, ROWS - 1), max_size=5))
@settings(max_examples=10, deadline=None)
def test_taking_rows_is_scaling_them(rows: list[int]) -> None:
    prompts, pooled = make_training(), make_pooled()
    scaler = InputScaler.fit(prompts, pooled)
    taken = scaler(prompts, pooled).take(rows)
    direct = scaler(prompts.take(np.array(rows, np.int64)), pooled[np.array(rows, np.int64)])
    assert len(taken) == len(rows)
    torch.testing.assert_close(taken.scalars, direct.scalars)
    torch.testing.assert_close(taken.text, direct.text)
    assert torch.equal(taken.model, direct.model)


def test_features_that_are_not_finite_are_not_learnt_from() -> None:
    prompts, pooled = make_training(), make_pooled()
    pooled[17, 2] = np.nan
    with pytest.raises(FeaturesError, match="prompt 17 of 60"):
        InputScaler.fit(prompts, pooled)
    with pytest.raises(FeaturesError, match="prompt 1 of 2"):
        InputScaler.fit(make_prompts(["a", "b"], prompt_tokens=[1, 0]), make_pooled(2))
    with pytest.raises(FeaturesError, match="0 prompts"):
        InputScaler.fit(make_prompts([]), make_pooled(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scalar_names": ["other"]}, "other"),
        ({"text_scale": [1.0]}, "1 values of text_scale, must be 5"),
        ({"scalar_upper": [1.0]}, "1 values of scalar_upper"),
        ({"text_mean": [float("nan")] * WIDTH}, "text_mean is not finite"),
    ],
)
def test_a_state_that_is_none_is_refused(change: dict[str, object], message: str) -> None:
    state = InputScaler.fit(make_training(), make_pooled()).state
    with pytest.raises(FeaturesError, match=message):
        InputScaler(msgspec.structs.replace(state, **change))
