"""Features counted in a prompt's text: its shape, and the words that ask for a length.

They cost a few per mille of an encoder pass, need no tokenizer, and are what a large encoder has
to beat.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from policies.batch import Floats

_HEAD_CHARS, _TAIL_CHARS = 800, 400  # searched for words; lengths are of the whole text


def _words(line: str) -> list[str]:
    return line.split()


_SHAPE = (
    "log_chars",
    "log_words",
    "log_lines",
    "log_first_line_chars",
    "log_other_lines_chars",
    "word_chars",
    "digit_share",
    "symbol_share",
    "upper_share",
    "non_ascii_share",
)
_MARKS = (
    "code_marks",
    "math_marks",
    "bullets",
    "questions",
    "ends_in_question",
    "quotes",
)
_OPENINGS = {
    "opens_what": "what who whom whose which when where what's who's",
    "opens_how_why": "how why",
    "opens_closed": "is are was were do does did can could should would will has have if true",
    "opens_write": "write compose create draft generate design develop build construct make craft "
    "produce imagine tell prepare implement",
    "opens_transform": "classify identify categorize translate convert edit rewrite rephrase "
    "correct fix find determine select calculate compute replace rank sort arrange choose extract "
    "remove reorder predict match detect evaluate solve insert add change transform parse order "
    "combine sum label count assign complete fill guess read answer given turn organize group "
    "separate shorten simplify paraphrase summarize summarise",
    "opens_explain": "explain describe discuss analyze analyse compare contrast elaborate outline "
    "argue critique review illustrate define interpret",
    "opens_list": "list give provide suggest brainstorm name propose recommend enumerate offer",
}
_TOPICS = {
    "long_form": "essay article blog report paper script speech plan guide tutorial chapter "
    "proposal review itinerary documentation lesson curriculum thesis outline strategy program "
    "presentation analysis story recipe",
    "short_form": "tweet headline title haiku slogan phrase tagline caption motto quote pun joke "
    "name antonym antonyms synonym synonyms acronym hashtag adjective noun verb keyword label "
    "category riddle definition",
    "creative": "story poem song lyrics dialogue dialog scene character fiction roleplay novel "
    "narrative verse sonnet letter email post",
    "brief": "brief briefly short concise concisely only just simply quick tl tldr shortly few",
    "detailed": "detailed detail details comprehensive thorough thoroughly long depth elaborate "
    "extensive complete full in-depth",
    "summary": "summarize summarise summary summarizing paraphrase abstract gist",
    "classify": "classify categorize categorise category sentiment label classification identify "
    "which true false correct",
    "explain": "explain why how describe discuss compare difference differences explanation reason "
    "reasons analyze",
    "listing": "list ideas examples ways tips steps reasons suggestions options items topics "
    "questions pros cons advantages disadvantages benefits names",
    "translate": "translate translation spanish french german chinese japanese english",
    "rewrite": "rewrite edit rephrase correct grammar grammatical reword sentence punctuation "
    "spelling tense passage paragraph text proofread",
    "code_request": "code function python java javascript sql html css program script class "
    "algorithm api regex query library implement bash react typescript c++ app error",
    "first_person": "i my me i'm we our i've us",
    "compute": "calculate compute sum average total solve equation find convert percentage number "
    "many much multiply divide area probability",
}
_ASKED = ("asks_one_unit", "asks_steps", "log_count", "log_word_budget")

LEXICAL_NAMES: tuple[str, ...] = (*_SHAPE, *_MARKS, *_OPENINGS, *_TOPICS, *_ASKED)
"""The features in their order."""

_MOST_HITS = 3.0  # of a topic: more say nothing more
_LONGEST_WORD = 20.0  # mean characters of a word
_OPENING_WORDS = 3  # "please write", "can you list"
_LARGEST_COUNT = 100
_NUMERALS = {
    **{word: 2 + at for at, word in enumerate(_words("two three four five six seven eight nine"))},
    **{"ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30},
    **{"fifty": 50, "hundred": 100, "couple": 2, "dozen": 12},
}
_UNITS = frozenset(_words("word sentence line phrase letter character number paragraph"))
_ONE = frozenset(_words("a an one single 1 each"))
_NOT_COUNTED = frozenset(
    _words("years hours days minutes dollars miles meters degrees percent people")
)
_CODE = ("```", "def ", "import ", "return ", "();", "{\n", "</", "==", "):", "#include", "print(")
_MATH = "=+^\\$"

_WORD = re.compile(r"[a-z][a-z'+-]*|[0-9]+")
_UPPER = re.compile(r"[A-Z]+")
_DIGIT = re.compile(r"[0-9]+")
_PLAIN = re.compile(r"[A-Za-z0-9\s]+", re.ASCII)
_BULLET = re.compile(r"^[ \t]*(?:[-*\u2022]|[0-9]{1,2}[.)])\s", re.MULTILINE)


def _index(lists: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Which lists a word stands in."""
    found: dict[str, tuple[int, ...]] = {}
    for position, words in enumerate(lists.values()):
        for word in words.split():
            found[word] = (*found.get(word, ()), position)
    return found


_OPENING_OF = _index(_OPENINGS)
_TOPICS_OF = _index(_TOPICS)


def lexical_features(text: str) -> Floats:
    """`LEXICAL_NAMES` of one text, (features,), all finite whatever the text."""
    text = text.strip()
    view = text
    if len(text) > _HEAD_CHARS + _TAIL_CHARS:
        view = text[:_HEAD_CHARS] + "\n" + text[-_TAIL_CHARS:]
    words = _WORD.findall(view.lower())
    return np.array(
        [
            *_shape(text, view),
            *_marks(text, view),
            *_opening(words),
            *_topics(words),
            *_asked(words),
        ]
    )


def _shape(text: str, view: str) -> list[float]:
    words = len(text.split())
    first, _, others = text.partition("\n")
    chars = max(len(view), 1)
    ascii_only = view if view.isascii() else view.encode("ascii", "ignore").decode()
    return [
        math.log1p(len(text)),
        math.log1p(words),
        math.log1p(text.count("\n")),
        math.log1p(len(first)),
        math.log1p(len(others)),
        min(len(text) / max(words, 1), _LONGEST_WORD),
        _matched(_DIGIT, ascii_only) / chars,
        (len(ascii_only) - _matched(_PLAIN, ascii_only)) / chars,
        _matched(_UPPER, ascii_only) / chars,
        (len(view) - len(ascii_only)) / chars,
    ]


def _matched(pattern: re.Pattern[str], text: str) -> int:
    """Characters in the matches."""
    return sum(map(len, pattern.findall(text)))


def _marks(text: str, view: str) -> list[float]:
    return [
        math.log1p(sum(map(text.count, _CODE))),
        math.log1p(sum(map(view.count, _MATH))),
        math.log1p(len(_BULLET.findall(view))),
        math.log1p(view.count("?")),
        float(text.endswith("?")),
        math.log1p(view.count('"') + view.count("\u201c")),
    ]


def _opening(words: Sequence[str]) -> list[float]:
    """Which kind of request the first words make: at most one 1."""
    kinds = [0.0] * len(_OPENINGS)
    for word in words[:_OPENING_WORDS]:
        if word in _OPENING_OF:
            kinds[_OPENING_OF[word][0]] = 1.0
            break
    return kinds


def _topics(words: Sequence[str]) -> list[float]:
    hits = [0.0] * len(_TOPICS)
    for word in words:
        for topic in _TOPICS_OF.get(word, ()):
            hits[topic] += 1.0
    return [min(count, _MOST_HITS) for count in hits]


def _asked(words: Sequence[str]) -> list[float]:
    """What is asked for in so many words: one word, step by step, ten ideas, 500 words."""
    one_unit = steps = 0.0
    count = budget = 0
    for at, word in enumerate(words):
        if word in _UNITS and at and words[at - 1] in _ONE:
            one_unit = 1.0
        elif word == "step" and words[at + 2 : at + 3] in (["step"], ["steps"]):
            steps = 1.0
        value = _number(word)
        if value <= 1:
            continue
        ahead = words[at + 1 : at + 3]
        if ahead and ahead[0] in ("word", "words"):
            budget = max(budget, value)
        elif value <= _LARGEST_COUNT and _counts_things(ahead):
            count = max(count, value)
    return [one_unit, steps, math.log1p(count), math.log1p(budget)]


def _number(word: str) -> int:
    """The value of a numeral, 0 if it is none or too large to be a length."""
    if word.isdigit():
        return int(word) if len(word) < 6 else 0
    return _NUMERALS.get(word, 0)


def _counts_things(ahead: Sequence[str]) -> bool:
    """Whether a number's next words are a plural that an answer may hold ("10 good ideas")."""
    if not ahead or ahead[0].isdigit() or ahead[0] in _NOT_COUNTED:
        return False
    return any(word[-1] == "s" and len(word) > 3 for word in ahead)
