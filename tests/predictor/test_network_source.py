from pathlib import Path

import pytest

from predictor import network_source
from predictor.network_source import NetworkSource


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    (folder / "small-model").mkdir(parents=True)
    (folder / "a-file").write_text("not a network")
    monkeypatch.setattr(network_source, "SHIPPED", folder)
    return folder


def test_a_network_is_found_by_the_name_of_the_model(shipped: Path) -> None:
    source = NetworkSource("auto", "small-model")
    assert source.folder == shipped / "small-model"
    assert source.name == "small-model"


@pytest.mark.parametrize("model", ["other", "a-file", "", ".", "..", "../data/small-model", "/"])
def test_no_other_name_finds_one(model: str) -> None:
    source = NetworkSource("auto", model)
    assert source.folder is None
    assert source.name == ""
    with pytest.raises(ValueError, match="no network is shipped"):
        source.load()


def test_none_is_none_and_a_folder_is_itself(tmp_path: Path) -> None:
    assert NetworkSource("none", "small-model").folder is None
    assert NetworkSource(str(tmp_path / "mine"), "small-model").folder == tmp_path / "mine"
