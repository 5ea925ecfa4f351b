"""The configuration: one file, the same fields as options, mistakes named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import ClusterConfig, ConfigError, fields, load_config, parse_config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_stand_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "replicas: {count: 3, max_num_seqs: 5}\npolicy: {name: tie}\n")
    config = load_config(path, {"replicas.count": 4})
    assert (config.replicas.count, config.replicas.max_num_seqs) == (4, 5)
    assert config.policy.name == "tie"
    assert config.replicas.block_size == ClusterConfig().replicas.block_size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replicas: {cuont: 3}", r"unknown key 'replicas.cuont': did you mean 'replicas.count'"),
        ("polcy: {name: tie}", r"unknown key 'polcy': did you mean 'policy"),
        ("replicas: {count: -1}", r"replicas.count is -1: .*greater than or equal to 0"),
        ("replicas: {count: many}", r"replicas.count is 'many': .*integer"),
        ("policy: {name: ti}", r"policy: unknown policy 'ti'"),
        ("policy: {ordering_options: {gama: 0.5}}", r"'gama'.*did you mean 'gamma'"),
        ("policy: {ordering_options: {gamma: 7}}", r"gamma is 7"),
        ("[1, 2]", r"must hold a mapping"),
        ("a: [", r"cannot be read as YAML"),
        ("replicas: 3", r"replicas is 3"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        load_config(write(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_every_field_says_what_it_means() -> None:
    listed = list(fields())
    assert len({field.name for field in listed}) == len(listed) > 20
    assert all(field.description.endswith(".") for field in listed)


def test_a_configuration_survives_the_way_to_the_controller() -> None:
    config = parse_config({"replicas": {"count": 7}, "policy": {"admission_options": {"q": 0.7}}})
    assert parse_config(config.model_dump(mode="json")) == config
