"""`tiebreak train`, `evaluate` and `fit-labels` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

from jobs.errors import OutputError
from jobs.evaluate import evaluate_command
from jobs.fit_labels import fit_labels_command
from jobs.train import train_command
from predictor.labels import LabelsError
from predictor.splits import Split
from tests.predictor.training_factories import labels_of, texts, tiny_encoder, write_labels

KEYS = [
    "prompts", "r2_mu", "r2_sigma", "kendall_tau", "nll", "nll_prior", "coverage",
    "coverage_due",
    "interval_width", "interval_width_prior",
]  # fmt: skip


def run(*words: object) -> None:
    """One command, its errors raised."""
    app = typer.Typer()
    app.command("train")(train_command)
    app.command("evaluate")(evaluate_command)
    app.command("fit-labels")(fit_labels_command)
    app([str(word) for word in words], standalone_mode=False)


def train(folder: Path, data: Path, *words: object) -> None:
    encoder = folder / "encoder"
    if not encoder.exists():
        tiny_encoder(encoder)
    quick = ("--epochs", 3, "--members", 1, "--learning-rate", 0.003, "--threads", 1)
    run("train", "--data", data, "--out", folder / "net", "--encoder", encoder, *quick, *words)


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = labels_of(texts(300), models=("one", "two"), cap=400)
    data = write_labels(tmp_path / "x.parquet", labels)
    train(tmp_path, data, "--cap-tokens", 300)
    told = capsys.readouterr()
    assert "Kendall tau" in told.out
    assert "epoch 3, loss" in told.err
    run("evaluate", tmp_path / "net", "--data", data, "--model", "two", "--json")
    captured = capsys.readouterr()
    scores = json.loads(captured.out)
    assert list(scores) == KEYS
    assert scores["prompts"] == 300
    assert all(isinstance(value, float | int) for value in scores.values())
    assert f"trained on {len(labels.split()[Split.TRAIN]) // 2:,} of these 300" in captured.err
    run("evaluate", tmp_path / "net", "--data", data, "--split", "test")
    captured = capsys.readouterr()
    shown = captured.out.split()
    assert shown[shown.index("prompts") + 1] == str(len(labels.split()[Split.TEST]))
    assert set(KEYS) <= set(shown)
    assert "note" not in captured.err
    with pytest.raises(LabelsError, match="did you mean 'two'"):
        run("evaluate", tmp_path / "net", "--data", data, "--model", "tow", "--json")


def test_train_on_a_folder_it_cannot_write(tmp_path: Path) -> None:
    data = write_labels(tmp_path / "x.parquet", labels_of(texts(300)))
    (tmp_path / "net").write_text("a file")
    with pytest.raises(OutputError, match="name another --out"):
        train(tmp_path, data)


def test_a_side_without_prompts(tmp_path: Path) -> None:
    data = write_labels(tmp_path / "x.parquet", labels_of(texts(300)))
    train(tmp_path, data, "--epochs", 1)
    one = write_labels(tmp_path / "one.parquet", labels_of(["write one"]))
    side = labels_of(["write one"]).split()
    empty = next(split for split, rows in side.items() if not len(rows))
    with pytest.raises(LabelsError, match=f"none of 1 prompts falls on the {empty.value} side"):
        run("evaluate", tmp_path / "net", "--data", one, "--split", empty.value)


def test_fit_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = labels_of(texts(60), models=("one", "two"), samples=8, cap=150)
    data = write_labels(tmp_path / "x.parquet", labels)
    out = tmp_path / "fits.parquet"
    run("fit-labels", data, "--out", out, "--json", "--compare-scipy", 5)
    report = json.loads(capsys.readouterr().out)
    assert (report["prompts"], report["samples"]) == (120, 960)
    assert report["censored_samples"] == int(labels.censored.sum()) > 0
    assert report["split_half"]["mu"] > 0.9
    assert report["scipy"]["prompts"] == 5
    assert report["scipy"]["largest_mu_difference"] < 0.01
    fits = pq.read_table(out)
    assert fits.num_rows == 120
    assert {"prompt", "model", "mu", "sigma", "samples", "censored_samples"} <= set(
        fits.column_names
    )
    run("fit-labels", data, data, "--model", "one", "--compare-scipy", 5)
    shown = capsys.readouterr().out
    assert "split-half reliability of sigma" in shown
    assert "scipy.optimize, one at a time" in shown
    single = write_labels(tmp_path / "single.parquet", labels_of(texts(20), samples=1))
    run("fit-labels", single, "--json")
    assert json.loads(capsys.readouterr().out)["split_half"]["mu"] is None
    with pytest.raises(OutputError, match="name another --out"):
        run("fit-labels", data, "--out", tmp_path / "x.parquet" / "y.parquet")
