"""Reading labels: what is merged, what is cut, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.excerpt import excerpt
from predictor.labels import MAX_SAMPLES, LabelsError, read_labels
from predictor.splits import Split, split_of
from tests.predictor.training_factories import labels_of, texts, write_labels, write_table

GOOD: dict[str, Any] = {
    "prompt": ["say a", "say b"],
    "prompt_tokens": [3, 4],
    "output_tokens": [[5, 6], [7, 8]],
    "model": ["m", "m"],
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    labels = labels_of(texts(20), models=("b", "a"), cap=120)
    found = read_labels([write_labels(tmp_path / "x.parquet", labels)])
    assert list(found.prompts.text) == list(labels.prompts.text)
    assert list(found.prompts.model) == list(labels.prompts.model)
    np.testing.assert_array_equal(found.output_tokens, labels.output_tokens)
    np.testing.assert_array_equal(found.censored, labels.censored)
    np.testing.assert_array_equal(found.prompts.max_tokens, 120)
    assert found.models == ["a", "b"]
    assert found.fingerprint() == labels.fingerprint()
    assert found.take([0, 1]).fingerprint() != found.take([1, 0]).fingerprint()


def test_rows_of_one_prompt_become_one(tmp_path: Path) -> None:
    first = write_table(tmp_path / "1.parquet", **GOOD)
    other = GOOD | {"output_tokens": [9, 10], "model": ["m", "other"]}
    second = write_table(tmp_path / "2.parquet", **other)
    found = read_labels([first, second])
    assert list(zip(found.prompts.text, found.prompts.model, strict=True)) == [
        ("say a", "m"), ("say b", "m"), ("say b", "other"),
    ]  # fmt: skip
    assert found.output_tokens.tolist() == [[5, 6, 9], [7, 8, 0], [10, 0, 0]]
    assert found.weights.sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    assert read_labels([tmp_path]).fingerprint() == found.fingerprint()
    hot = write_table(tmp_path / "hot.parquet", **(GOOD | {"temperature": [0.0, 1.0]}))
    assert len(read_labels([first, hot])) == 3


def test_a_prompt_without_end_keeps_its_last_samples(tmp_path: Path) -> None:
    count = MAX_SAMPLES + 10
    columns = {name: [GOOD[name][0]] * count for name in ("prompt", "prompt_tokens", "model")}
    file = write_table(tmp_path / "x.parquet", output_tokens=list(range(1, count + 1)), **columns)
    assert read_labels([file]).output_tokens.tolist() == [list(range(11, count + 1))]


def test_a_logged_prompt_that_only_begins_like_a_chat_is_text(tmp_path: Path) -> None:
    prompts = ['[{"a": ' * 5000, '[{"role": "user"}]', "[{}]"]
    file = write_table(
        tmp_path / "x.parquet",
        prompt=prompts,
        prompt_tokens=[1, 2, 3],
        output_tokens=[1, 2, 3],
        model=["m"] * 3,
    )
    assert list(read_labels([file]).prompts.text) == [excerpt(prompt) for prompt in prompts]


def test_production_logs_work_as_they_are(tmp_path: Path) -> None:
    """Parts of `tiebreak generate`: one sample a row, chats as JSON, no model in some."""
    chat = '[{"role": "user", "content": "hello"}, {"role": "user", "content": "you"}]'
    file = write_table(
        tmp_path / "out" / "parts" / "part-00000.parquet",
        prompt=[chat, "[{ not json", "plain"],
        prompt_tokens=[3, 4, 5],
        output_tokens=[5, 6, 7],
        finish_reason=["stop", "length", None],
        model=pa.array([None, "m", None], pa.string()),
    )
    found = read_labels([tmp_path / "out"], unnamed_model="mine")
    assert list(found.prompts.text) == ["hello\nyou", "[{ not json", "plain"]
    assert list(found.prompts.model) == ["mine", "m", "mine"]
    assert found.censored.tolist() == [[False], [True], [False]]
    with pytest.raises(LabelsError, match="row 0: it names no model"):
        read_labels([file])


def test_rows_that_ended_in_an_error_are_skipped(tmp_path: Path) -> None:
    """As `tiebreak generate --ordered` writes them, among the answers."""
    columns: dict[str, Any] = {
        "prompt": ["broken", "say a", "broken", "say b"],
        "prompt_tokens": [None, 3, None, 4],
        "output_tokens": [None, 5, None, 6],
        "model": [None, "m", None, "m"],
        "finish_reason": ["error", "stop", "error", None],
    }
    found = read_labels([write_table(tmp_path / "output.parquet", **columns)])
    assert list(found.prompts.text) == ["say a", "say b"]
    assert found.output_tokens.tolist() == [[5], [6]]
    for change, told in (
        ({"output_tokens": [None, 5, None, 0]}, "row 3: output_tokens is 0"),
        ({"prompt_tokens": [None, 3, None, None]}, "row 3: prompt_tokens is null"),
        ({"prompt": ["broken", " ", "broken", "b"]}, "row 1: the prompt is empty"),
    ):
        file = write_table(tmp_path / "bad.parquet", **(columns | change))
        with pytest.raises(LabelsError, match=told):
            read_labels([file])


def test_texts_are_cut_as_in_serving_and_lengths_at_the_cap(tmp_path: Path) -> None:
    long = "x" * 100_000
    file = write_table(tmp_path / "x.parquet", **(GOOD | {"prompt": [long, "say"]}))
    found = read_labels([file], cap_tokens=6)
    assert list(found.prompts.text) == [excerpt(long), "say"]
    assert found.output_tokens.tolist() == [[5, 6], [6, 6]]
    assert found.censored.tolist() == [[False, True], [True, True]]


@given(st.lists(st.sampled_from([f"prompt {i}" for i in range(40)]), min_size=1, max_size=60))
def test_no_text_is_on_two_sides(chosen: list[str]) -> None:
    labels = labels_of(chosen_prompts := [f"write {text}" for text in chosen], samples=1)
    sides = labels.split()
    assert sorted(row for rows in sides.values() for row in rows) == list(range(len(chosen)))
    for split, rows in sides.items():
        assert {split_of(chosen_prompts[row]) for row in rows} <= {split}
    assert set(sides) == set(Split)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"output_tokens": [[5, 0], [7, 8]]}, r"row 0: output_tokens is 0, must be a whole number"),
        ({"output_tokens": [[5, 6], [-7, 8]]}, r"row 1: output_tokens is -7, .* in 1\.\.16777216"),
        ({"output_tokens": [5, -1]}, "row 1: output_tokens is -1"),
        ({"output_tokens": [[5.5], [1.0]]}, r"row 0: output_tokens is 5\.5"),
        ({"output_tokens": [[1.0], [float("nan")]]}, "row 1: output_tokens is nan"),
        ({"output_tokens": [[5], []]}, "row 1: output_tokens holds no length"),
        ({"output_tokens": [[5, None], [7, 8]]}, "row 0: output_tokens is null"),
        ({"output_tokens": [["5"], ["6"]]}, "column 'output_tokens' holds string, must be whole"),
        ({"prompt_tokens": [0, 1]}, "row 0: prompt_tokens is 0"),
        ({"prompt_tokens": [1.0, float("nan")]}, "row 1: prompt_tokens is nan"),
        ({"prompt": [1, 2]}, "column 'prompt' holds int64, must be text"),
        ({"prompt": ["a", None]}, "row 1: prompt is null"),
        ({"prompt": ["a", " \n"]}, "row 1: the prompt is empty"),
        ({"model": ["m", ""]}, "row 1: it names no model"),
        ({"temperature": [1.0, float("nan")]}, "row 1: temperature is nan"),
        ({"temperature": [-1.0, 1.0]}, r"row 0: temperature is -1\.0"),
        ({"temperature": ["a", "b"]}, "column 'temperature' holds string"),
        ({"max_tokens": [8, -8]}, "row 1: max_tokens is -8"),
        ({"censored": [[True], [True, False]]}, "row 0: censored holds 1 values for 2"),
        ({"censored": [1, 0]}, "column 'censored' holds int64"),
        ({"censored": [True, True]}, "a cap ended all 4 answers"),
        ({"censored": [[True, True], [True, True]]}, "a cap ended all 4 answers"),
    ],
)
def test_bad_values(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    file = write_table(tmp_path / "x.parquet", **(GOOD | change))
    with pytest.raises(LabelsError, match=told) as caught:
        read_labels([file])
    assert "x.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["prompt", "prompt_tokens", "output_tokens", "model"])
def test_missing_columns(tmp_path: Path, name: str) -> None:
    columns = {other: values for other, values in GOOD.items() if other != name}
    file = write_table(tmp_path / "x.parquet", **columns)
    with pytest.raises(LabelsError, match=f"no column '{name}', only .*; labels need"):
        read_labels([file])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="does not exist"):
        read_labels([tmp_path / "nothing.parquet"])
    with pytest.raises(LabelsError, match=r"holds no \*\.parquet"):
        read_labels([tmp_path])
    (tmp_path / "text.parquet").write_text("prompt,model")
    with pytest.raises(LabelsError, match="cannot be read as Parquet"):
        read_labels([tmp_path / "text.parquet"])
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(LabelsError, match="cannot be read as Parquet"):
        read_labels([tmp_path / "empty.parquet"])
    empty = write_labels(tmp_path / "rows.parquet", labels_of(["write"]).take([]))
    with pytest.raises(LabelsError, match=r"holds null|no rows"):
        read_labels([empty])


def test_an_unknown_model_suggests_the_nearest(tmp_path: Path) -> None:
    names = ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B"]
    file = write_table(tmp_path / "x.parquet", **(GOOD | {"model": names}))
    assert read_labels([file], models=names[:1]).models == names[:1]
    with pytest.raises(LabelsError, match="did you mean 'meta-llama/Llama"):
        read_labels([file], models=["llama-3.1-8b"])
