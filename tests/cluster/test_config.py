"""The configuration: one file, the same fields as options, mistakes named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig, ConfigError, fields, load_config, parse_config
from cluster.forecasting import network_source, state_path
from cluster.membership.engine_choice import CPU_EXECUTOR, engine_spec
from policies.bundle import policy_names
from policies.gate_options import gate_of
from policies.ledger import Replica
from replicas.engines import make_engine


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


def test_an_option_needs_no_more_of_its_section_than_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, "replicas:\n  # count: 3\n")
    assert load_config(path, {"replicas.count": 4}).replicas.count == 4
    path = write(tmp_path, "replicas: 3\n")
    with pytest.raises(ConfigError, match=r"replicas is 3, must be a mapping of fields"):
        load_config(path, {"replicas.count": 4})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replicas: {cuont: 3}", r"unknown key 'replicas.cuont': did you mean 'replicas.count'"),
        ("polcy: {name: tie}", r"unknown key 'polcy': did you mean 'policy"),
        ("replicas: {count: -1}", r"replicas.count is -1: .*greater than or equal to 0"),
        ("replicas: {count: many}", r"replicas.count is 'many': .*integer"),
        ("policy: {max_evictions: 0}", r"policy.max_evictions is 0: .*greater than or equal to 1"),
        ("replicas: {scheduler: fcfs}", r"replicas.scheduler is 'fcfs': .*'projected' or 'vllm'"),
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


def test_a_network_is_meant_from_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config({"predictor": {"network": "networks/mine"}})
    assert config.predictor.network == str(tmp_path / "networks/mine")
    monkeypatch.chdir("/")
    assert parse_config(config.model_dump(mode="json")) == config
    for word in ("auto", "none"):
        assert parse_config({"predictor": {"network": word}}).predictor.network == word


def test_files_are_meant_from_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config({"journal": "all.jsonl", "predictor": {"state": "learnt.json"}})
    assert config.journal == str(tmp_path / "all.jsonl")
    monkeypatch.chdir("/")
    assert parse_config(config.model_dump(mode="json")) == config
    assert state_path(config) == tmp_path / "learnt.json"


def test_no_network_is_shipped_for_simulated_engines() -> None:
    simulated = parse_config({"replicas": {"engine": "simulated"}})
    assert network_source(simulated).network == "none"
    real = parse_config({"predictor": {"num_gpus": 0.25}})
    assert (network_source(real).network, network_source(real).device) == ("auto", "cuda")
    named = {"replicas": {"engine": "simulated"}, "predictor": {"network": "/mine"}}
    assert network_source(parse_config(named)).network == "/mine"


def spec_args(**sections: dict[str, Any]) -> dict[str, Any]:
    return engine_spec(parse_config({"model": "owner/name", **sections}), on_gpu=False).args


def test_the_policy_goes_into_the_engine_without_what_only_the_controller_can_do() -> None:
    chosen = {"name": "a_min", "eviction_options": {"variant": "stored"}, "max_evictions": 7}
    args = spec_args(policy=chosen | {"backfill": 3, "guard_band": 0.2})
    decides = args["additional_config"]["tiebreak"]
    assert args["scheduler_cls"] == "replicas.kv_scheduler.ProjectedMemoryScheduler"
    assert decides.items() >= chosen.items()
    assert not decides.keys() & {"backfill", "guard_band"}
    simulated = spec_args(policy=chosen, replicas={"engine": "simulated"})
    assert simulated["policy"] == decides


def test_every_policy_of_ours_can_be_built_inside_an_engine() -> None:
    for name in policy_names():
        args = spec_args(policy={"name": name})
        gate_of(args["additional_config"]["tiebreak"], Replica("engine", 10, 1, 1, 10))
        config = parse_config({"policy": {"name": name}, "replicas": {"engine": "simulated"}})
        make_engine(engine_spec(config, on_gpu=False), [])


def test_vllm_s_own_scheduler_gets_the_order_as_priorities() -> None:
    own = spec_args(replicas={"scheduler": "vllm"})
    assert not own.keys() & {"scheduler_cls", "additional_config"}
    assert own["scheduling_policy"] == "priority"
    # The gate has the keys themselves; a priority would stand before them.
    assert "scheduling_policy" not in spec_args()
    simulated = spec_args(replicas={"scheduler": "vllm", "engine": "simulated"})
    assert simulated["policy"] is None


def test_an_engine_of_one_worker_on_cpu_cores_is_one_process() -> None:
    assert spec_args()["distributed_executor_backend"] == CPU_EXECUTOR
    for several in (
        {"tensor_parallel_size": 2},
        {"engine_args": {"pipeline_parallel_size": 2}},
        {"engine": "simulated"},
    ):
        assert "distributed_executor_backend" not in spec_args(replicas=several), several
    config = parse_config({"model": "owner/name"})
    assert "distributed_executor_backend" not in engine_spec(config, on_gpu=True).args
    own = {"engine_args": {"distributed_executor_backend": "mp"}}
    assert spec_args(replicas=own)["distributed_executor_backend"] == "mp"


def test_a_user_s_own_engine_arguments_stay() -> None:
    further = {"additional_config": {"theirs": 1}, "scheduler_cls": "their.Scheduler"}
    args = spec_args(replicas={"engine_args": further})
    assert args["scheduler_cls"] == "their.Scheduler"
    assert args["additional_config"]["theirs"] == 1
    assert args["additional_config"]["tiebreak"]["name"] == ClusterConfig().policy.name


def test_what_the_engine_is_told_is_the_same_in_every_run() -> None:
    """vLLM's compile cache depends on it."""
    assert spec_args() == spec_args()
    assert json.loads(json.dumps(spec_args())) == spec_args()
