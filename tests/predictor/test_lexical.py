import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.excerpt import excerpt
from predictor.lexical import LEXICAL_NAMES, lexical_features


def feature(name: str, text: str) -> float:
    return float(lexical_features(text)[LEXICAL_NAMES.index(name)])


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_finite_features(text: str) -> None:
    features = lexical_features(text)
    assert features.shape == (len(LEXICAL_NAMES),)
    assert np.isfinite(features).all()


@pytest.mark.parametrize(
    "text", ["", " \n", "\x00", "\ud800\udc00", "²³ 一二", "9" * 5000, "x" * 400_000]
)
def test_strange_texts_have_finite_features(text: str) -> None:
    assert np.isfinite(lexical_features(text)).all()


def test_names_are_unique() -> None:
    assert len(set(LEXICAL_NAMES)) == len(LEXICAL_NAMES)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("log_chars", "abc\n", np.log(4)),
        ("log_words", "one two  three", np.log(4)),
        ("log_lines", "a\nb\nc", np.log(3)),
        ("log_first_line_chars", "abc\nde", np.log(4)),
        ("log_other_lines_chars", "abc\nde", np.log(3)),
        ("word_chars", "x" * 100, 20.0),
        ("digit_share", "a1b2", 0.5),
        ("symbol_share", "a+b=", 0.5),
        ("upper_share", "ABcd", 0.5),
        ("non_ascii_share", "aéoü", 0.5),
        ("code_marks", "def f(): return 1", np.log(4)),
        ("math_marks", "x^2 + y = $3", np.log(5)),
        ("bullets", "- a\n2. b\nc", np.log(3)),
        ("questions", "why? how?", np.log(3)),
        ("ends_in_question", "why? ", 1.0),
        ("quotes", 'say "hi" and “ho”', np.log(4)),
        ("opens_what", "What is this?", 1.0),
        ("opens_how_why", "Why not", 1.0),
        ("opens_closed", "Can you list", 1.0),
        ("opens_list", "Can you list", 0.0),
        ("opens_write", "Please write a poem", 1.0),
        ("opens_write", "It is not to be so, write", 0.0),
        ("long_form", "an essay, a report, a guide, a plan", 3.0),
        ("brief", "be brief", 1.0),
        ("translate", "translation to German", 2.0),
        ("asks_one_unit", "in a single sentence", 1.0),
        ("asks_one_unit", "sentences", 0.0),
        ("asks_steps", "think step by step", 1.0),
        ("asks_steps", "the next step is big", 0.0),
        ("log_count", "give me 10 good ideas", np.log(11)),
        ("log_count", "five reasons and seven tips", np.log(8)),
        ("log_count", "in 10 years", 0.0),
        ("log_count", "10 good", 0.0),
        ("log_count", "the 1990 songs", 0.0),
        ("log_word_budget", "an essay of 500 words", np.log(501)),
        ("log_word_budget", "of 123456789 words", 0.0),
    ],
)
def test_what_is_counted(name: str, text: str, expected: float) -> None:
    assert feature(name, text) == pytest.approx(expected)


def test_words_are_sought_at_both_ends_of_a_long_text() -> None:
    middle = "lorem ipsum " * 400
    text = excerpt(f"Translate this.\n{middle}\nKeep it brief.")
    assert feature("translate", text) == 1.0
    assert feature("brief", text) == 1.0
    assert feature("brief", excerpt(middle + " brief " + middle)) == 0.0
