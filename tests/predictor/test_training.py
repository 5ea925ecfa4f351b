"""Training from labels to a folder: sides, reproducibility, resuming, what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from predictor.artifact import ArtifactError, load_artifact
from predictor.checkpoint import FOLDER, CheckpointError
from predictor.device import DeviceError
from predictor.encoder import DEFAULT_ENCODER, EncoderError, EncoderSpec
from predictor.evaluation import EvaluationError, evaluate, learnt_from, trained_cap
from predictor.labels import LabelsError
from predictor.learned import LearnedForecaster
from predictor.splits import Split, split_of
from predictor.training import PRIOR_FILE, PROMPTS_FILE, train
from predictor.training_settings import Loss, TrainingError, TrainingSettings
from predictor.training_watch import Epoch, TrainingWatch
from tests.predictor.training_factories import labels_of, quick_settings, texts

ROOT = Path(__file__).parents[2]


class KilledError(Exception):
    """Stands for a kill that the process survives."""


class KillAt(TrainingWatch):
    """Ends the training after some epochs, and counts what was encoded before."""

    def __init__(self, epoch: int | None = None) -> None:
        self.epochs: list[Epoch] = []
        self.stages: list[tuple[str, int]] = []
        self._at = epoch

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        if epoch.number == self._at:
            raise KilledError


def weights(folder: Path) -> dict[str, bytes]:
    """What a forecast rests on."""
    names = ("heads.safetensors", "normalisation.json", "calibration.json", PRIOR_FILE)
    extra = [name for name in ("encoder.safetensors",) if (folder / name).exists()]
    return {name: (folder / name).read_bytes() for name in (*names, *extra)}


def test_a_network_learns_and_scores_as_served(tmp_path: Path) -> None:
    labels = labels_of(texts(400), models=("one", "two"))
    settings = quick_settings(tmp_path, epochs=12)
    trained = train(labels, tmp_path / "net", settings, sources=["made.parquet"])
    scores = trained.card.scores
    assert scores.prompts == len(labels.split()[Split.TEST])
    assert scores.r2_mu > 0.5
    assert scores.kendall_tau > 0.4
    assert scores.nll < scores.nll_prior - 0.2
    assert scores.interval_width < scores.interval_width_prior
    assert abs(scores.coverage - 0.9) < 0.1
    test_side = labels.take(labels.split()[Split.TEST])
    served = evaluate(tmp_path / "net", test_side)
    for name, value in msgspec.structs.asdict(scores).items():
        assert getattr(served, name) == pytest.approx(value, rel=1e-3), name
    card = (tmp_path / "net" / "README.md").read_text()
    assert labels.fingerprint() in card
    assert "made.parquet" in card
    assert f"{scores.r2_mu:.3f}" in card
    assert not (tmp_path / "net" / FOLDER).exists()
    assert LearnedForecaster.load(tmp_path / "net").models == ("one", "two")
    assert learnt_from(tmp_path / "net", labels) == len(labels.split()[Split.TRAIN])
    assert learnt_from(tmp_path / "net", test_side) == 0


@pytest.mark.parametrize(
    ("loss", "tune_layers"), [(Loss.MSE, 0), (Loss.REGRESSION, 0), (Loss.NLL, 0), (Loss.MSE, 1)]
)
def test_two_runs_and_an_interrupted_one_give_the_same_network(
    tmp_path: Path, loss: Loss, tune_layers: int
) -> None:
    labels = labels_of(texts(260), cap=200)
    settings = quick_settings(tmp_path, loss=loss, tune_layers=tune_layers, epochs=3)
    train(labels, tmp_path / "whole", settings)
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    train(labels, tmp_path / "again", settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights(tmp_path / "whole") == weights(tmp_path / "again")
    for epoch in (1, 2):
        with pytest.raises(KilledError):
            train(labels, tmp_path / "cut", settings, watch=KillAt(epoch))
    assert not (tmp_path / "cut" / "config.json").exists()
    watch = KillAt()
    train(labels, tmp_path / "cut", settings, watch=watch)
    assert [epoch.number for epoch in watch.epochs] == [1, 2, 3]
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("of another project")
    with pytest.raises(TrainingError, match=r"holds no network .*there is 'README.md'"):
        train(labels_of(texts(260)), tmp_path, TrainingSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"device is 'cuba', which torch cannot use here \("):
        train(labels_of(texts(260)), tmp_path / "net", TrainingSettings(), device="cuba")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0, float("nan")])
def test_a_coverage_that_is_no_share(tmp_path: Path, coverage: float) -> None:
    with pytest.raises(EvaluationError, match=f"coverage is {coverage}, must be above 0 and"):
        evaluate(tmp_path, labels_of(texts(30)), coverage=coverage)


def test_another_seed_gives_another_network(tmp_path: Path) -> None:
    labels = labels_of(texts(260))
    for seed in (0, 1):
        train(labels, tmp_path / str(seed), quick_settings(tmp_path, epochs=1, seed=seed))
    assert weights(tmp_path / "0") != weights(tmp_path / "1")


@pytest.mark.faults
def test_a_killed_process_resumes_to_the_same_network(tmp_path: Path) -> None:
    """SIGKILL between two epochs, then the same call in a new process."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from predictor.training import train\n"
        "from predictor.training_watch import TrainingWatch\n"
        "from tests.predictor.training_factories import labels_of, quick_settings, texts\n"
        "class Kill(TrainingWatch):\n"
        "    def epoch(self, epoch):\n"
        "        if epoch.number == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "root = Path(sys.argv[1])\n"
        "settings = quick_settings(root, epochs=3)\n"
        "train(labels_of(texts(260)), root / sys.argv[2], settings, watch=Kill())\n"
    )

    def run(folder: str, epoch: int) -> int:
        words = [sys.executable, "-c", script, str(tmp_path), folder, str(epoch)]
        return subprocess.run(words, cwd=ROOT, check=False, capture_output=True).returncode

    quick_settings(tmp_path)
    assert run("cut", 2) == -signal.SIGKILL
    assert (tmp_path / "cut" / FOLDER / "state.pt").exists()
    assert run("cut", 0) == 0
    train(labels_of(texts(260)), tmp_path / "whole", quick_settings(tmp_path, epochs=3))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_features_are_not_encoded_again(tmp_path: Path) -> None:
    labels = labels_of(texts(260))
    settings = quick_settings(tmp_path, epochs=1)
    train(labels, tmp_path / "first", settings, features=tmp_path / "features")
    for file in (tmp_path / "encoder").glob("*.safetensors"):
        # The same size and age: only a pass of the encoder could tell that it is broken.
        stat = file.stat()
        file.write_bytes(bytes(stat.st_size))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    train(labels, tmp_path / "second", settings, features=tmp_path / "features")
    assert weights(tmp_path / "first") == weights(tmp_path / "second")


def test_an_unfinished_training_of_other_settings_is_refused(tmp_path: Path) -> None:
    labels = labels_of(texts(260))
    with pytest.raises(KilledError):
        train(labels, tmp_path / "net", quick_settings(tmp_path), watch=KillAt(1))
    with pytest.raises(CheckpointError, match=r"differs in seed \(0 there, 7 here\)"):
        train(labels, tmp_path / "net", quick_settings(tmp_path, seed=7))
    (tmp_path / "net" / FOLDER / "state.pt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        train(labels, tmp_path / "net", quick_settings(tmp_path))


def test_a_training_that_never_got_to_an_epoch_is_in_nobodys_way(tmp_path: Path) -> None:
    labels = labels_of(texts(260))
    with pytest.raises(EncoderError):
        train(labels, tmp_path / "net", quick_settings(tmp_path, encoder=str(tmp_path / "no")))
    train(labels, tmp_path / "net", quick_settings(tmp_path, epochs=1))


def test_training_ends_when_validation_stops_improving(tmp_path: Path) -> None:
    labels = labels_of(texts(260))
    settings = quick_settings(tmp_path, epochs=40, patience=2, learning_rate=0.05)
    epochs = train(labels, tmp_path / "net", settings).card.epochs
    assert len(epochs) < 40
    assert [epoch.best for epoch in epochs[-3:]] == [True, False, False]


def test_a_model_left_out_is_never_seen_and_scored_apart(tmp_path: Path) -> None:
    labels = labels_of(texts(260), models=("one", "two"))
    settings = quick_settings(tmp_path, leave_out=("two",))
    card = train(labels, tmp_path / "net", settings).card
    assert tuple(card.models) == ("one",)
    assert card.transfer is not None
    assert card.transfer.prompts == card.scores.prompts
    assert card.transfer.nll_prior != card.scores.nll_prior
    with pytest.raises(LabelsError, match="did you mean 'two'"):
        train(labels, tmp_path / "other", quick_settings(tmp_path, leave_out=("twoo",)))


@pytest.mark.parametrize("loss", [Loss.AUTO, Loss.NLL])
def test_single_samples_train_without_fitted_labels(tmp_path: Path, loss: Loss) -> None:
    labels = labels_of(texts(400), samples=1)
    settings = quick_settings(tmp_path, loss=loss, epochs=12)
    card = train(labels, tmp_path / "net", settings).card
    assert card.settings.loss is (Loss.REGRESSION if loss is Loss.AUTO else Loss.NLL)
    assert card.scores.r2_mu > 0.4
    assert card.scores.nll < card.scores.nll_prior
    with pytest.raises(TrainingError, match="one sample, which says nothing of sigma"):
        train(labels, tmp_path / "mse", quick_settings(tmp_path, loss=Loss.MSE))


def test_several_samples_train_on_fitted_labels(tmp_path: Path) -> None:
    labels = labels_of(texts(260), samples=3)
    card = train(labels, tmp_path / "net", quick_settings(tmp_path, epochs=1)).card
    assert card.settings.loss is Loss.MSE


def test_models_may_differ_in_more_than_an_offset(tmp_path: Path) -> None:
    labels = labels_of(texts(600), models=("one", "two"))
    second = np.array([model == "two" for model in labels.prompts.model])
    middle = np.log(labels.output_tokens[second]).mean()
    # Where the one answers at length, the other is brief.
    mirrored = np.exp(2 * middle - np.log(labels.output_tokens[second]))
    labels.output_tokens[second] = np.maximum(np.rint(mirrored), 1).astype(np.int64)
    found = {}
    for width in (0, 2):
        settings = quick_settings(tmp_path, epochs=20, model_width=width)
        found[width] = train(labels, tmp_path / f"net{width}", settings).card.scores.r2_mu
    assert found[0] < 0.2
    assert found[2] > 0.5


def test_half_precision_is_judged_as_saved(tmp_path: Path) -> None:
    labels = labels_of(texts(260))
    full = train(labels, tmp_path / "full", quick_settings(tmp_path))
    half = train(labels, tmp_path / "half", quick_settings(tmp_path, half=True))
    size = {f: (tmp_path / f / "heads.safetensors").stat().st_size for f in ("full", "half")}
    assert size["half"] < 0.6 * size["full"]
    assert half.card.scores.nll == pytest.approx(full.card.scores.nll, abs=0.02)
    test_side = labels.take(labels.split()[Split.TEST])
    assert evaluate(tmp_path / "half", test_side).nll == pytest.approx(half.card.scores.nll, 1e-4)


def test_too_few_prompts_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for count in (1, 60):
        with pytest.raises(TrainingError, match=r"side, must be at least \d+; .* give about \d+"):
            train(labels_of(texts(count)), tmp_path / "net", quick_settings(tmp_path))
    one_side = [text for text in texts(400) if split_of(text) is not Split.VALIDATION]
    with pytest.raises(TrainingError, match="0 fall on the validation side"):
        train(labels_of(one_side), tmp_path / "net", quick_settings(tmp_path))
    assert not (tmp_path / "net").exists()


def test_a_learning_rate_that_explodes_says_so(tmp_path: Path) -> None:
    settings = quick_settings(tmp_path, learning_rate=1e30, gradient_clip=1e30)
    with pytest.raises(TrainingError, match="lower the learning rate, which is 1e"):
        train(labels_of(texts(260)), tmp_path / "net", settings)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"patience": 0},
        {"batch_size": 0},
        {"members": 0},
        {"learning_rate": float("nan")},
        {"gradient_clip": 0.0},
        {"weight_decay": -1.0},
        {"coverage": 1.0},
        {"tune_layers": -1},
        {"model_width": -1},
        {"seed": -1},
    ],
)
def test_settings_out_of_range(change: dict[str, float]) -> None:
    name = next(iter(change))
    with pytest.raises(TrainingError, match=f"{name} is"):
        TrainingSettings(**change)  # type: ignore[arg-type]


def test_settings_name_the_default_encoder_without_loading_torch() -> None:
    settings = TrainingSettings()
    assert settings.encoder == DEFAULT_ENCODER
    spec = EncoderSpec()
    assert settings.encoder_max_tokens == spec.max_tokens
    assert settings.encoder_tail_tokens == spec.tail_tokens
    code = "import sys, jobs.train, jobs.evaluate, jobs.fit_labels; print('torch' in sys.modules)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_a_folder_without_its_prior_cannot_be_evaluated(tmp_path: Path) -> None:
    labels = labels_of(texts(260), cap=300)
    net = tmp_path / "net"
    train(labels, net, quick_settings(tmp_path, epochs=1, cap_tokens=300))
    assert trained_cap(net) == 300
    (net / PRIOR_FILE).write_text("{}")
    with pytest.raises(EvaluationError, match=r"prior\.json cannot be read"):
        evaluate(net, labels)
    (net / PROMPTS_FILE).unlink()
    with pytest.raises(EvaluationError, match=r"training_prompts\.npy cannot be read"):
        learnt_from(net, labels)


def test_a_prompt_without_answer_is_an_error_not_a_number(tmp_path: Path) -> None:
    labels = labels_of(texts(260))
    train(labels, tmp_path / "net", quick_settings(tmp_path, epochs=1))
    labels.prompts.temperature[3] = np.nan
    with pytest.raises(
        EvaluationError, match=r"no answer for 1 of 260 prompts, the first is row 3"
    ):
        evaluate(tmp_path / "net", labels)


def test_training_again_that_fails_at_the_prior_leaves_no_old_network(tmp_path: Path) -> None:
    labels = labels_of(texts(400))
    settings, out = quick_settings(tmp_path), tmp_path / "net"
    train(labels, out, settings)
    (out / PRIOR_FILE).unlink()
    (out / PRIOR_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        train(labels, out, settings)
    with pytest.raises(ArtifactError):
        load_artifact(out)
