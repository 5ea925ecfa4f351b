import logging
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicas.detect_meter import MeterChoice, detect_meter, meter_of
from replicas.energy import EnergyMeterError, NullMeter, ReplayMeter
from replicas.power_model import modelled_device

RAPL = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))


class UnreadableError(OSError):
    pass


@dataclass
class ScriptedGpu:
    """A GPU whose counter follows a script of millijoules; None: it does not answer."""

    gpu_index: int
    script_mj: list[int | None]
    has_counter: bool = True

    def supports_get_total_energy_consumption(self) -> bool:
        return self.has_counter

    def get_total_energy_consumption(self) -> int:
        reading = self.script_mj.pop(0)
        if reading is None:
            raise UnreadableError("GPU is lost")
        return reading


@dataclass
class NVIDIAGPUs:  # the meter names its source by Zeus's class
    gpus: list[ScriptedGpu] = field(default_factory=list)


def gpu_meter(indices: list[int], *gpus: ScriptedGpu) -> Any:
    pytest.importorskip("zeus")
    from replicas.zeus_energy import ZeusGpuMeter

    return ZeusGpuMeter(indices, NVIDIAGPUs(list(gpus)))


def write_zone(folder: Path, name: str, energy_uj: int, range_uj: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def rapl_cpu(root: Path, index: int) -> Any:
    """Zeus's own reader over a power zone under `root`."""
    return pytest.importorskip("zeus.device.cpu.rapl").RAPLCPU(index, str(root))


def cpu_meter(*cpus: Any) -> Any:
    from replicas.zeus_energy import ZeusCpuMeter

    return ZeusCpuMeter(cpus)


def test_a_replay_gives_its_readings_in_order_and_then_the_last() -> None:
    meter = ReplayMeter([0.0, 2.5, None, 7.0])
    assert [meter.total_joules() for _ in range(6)] == [0.0, 2.5, None, 7.0, 7.0, 7.0]
    assert (meter.source, meter.reason) == ("replay", "")


@pytest.mark.parametrize(
    ("readings", "message"),
    [
        ([], "readings is empty"),
        ([-1.0], "reading 0 is -1.0 J"),
        ([5.0, None, 4.0], "reading 2 is 4.0 J, must be finite and >= 5.0"),
        ([float("inf")], "reading 0 is inf"),
    ],
)
def test_a_recording_that_no_meter_can_make_is_refused(readings: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayMeter(readings)


def test_a_null_meter_measures_nothing_and_says_why() -> None:
    meter = NullMeter("no counter here")
    assert (meter.source, meter.reason, meter.total_joules()) == ("none", "no counter here", None)
    meter.close()


def test_detection_without_cpu_counters_says_that_rapl_is_missing() -> None:
    pytest.importorskip("zeus")
    meter = detect_meter([])
    if any(path.exists() for path in RAPL):
        assert meter.source == "zeus:rapl" or meter.reason
        return
    assert isinstance(meter, NullMeter)
    assert meter.reason.startswith("the CPU packages cannot be metered: ZeusCPUInitError: RAPL")
    assert meter.total_joules() is None


def test_detection_of_gpus_that_are_not_there_does_not_fall_back_to_the_cpu() -> None:
    pytest.importorskip("zeus")
    meter = detect_meter([97])
    assert isinstance(meter, NullMeter)
    assert meter.reason.startswith("the GPUs [97] cannot be metered: ")


@pytest.mark.parametrize(("indices", "module"), [([], "zeus.device.cpu"), ([0], "zeus.device.gpu")])
def test_detection_without_zeus_names_the_package(
    monkeypatch: pytest.MonkeyPatch, indices: list[int], module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    meter = detect_meter(indices)
    assert (meter.source, meter.reason) == (
        "none",
        f"the optional package {module} is not installed",
    )


def test_detection_is_quiet(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    rapl, nvidia, amd = (
        pytest.importorskip(f"zeus.device.{name}") for name in ("cpu.rapl", "gpu.nvidia", "gpu.amd")
    )
    # Zeus logs what it looked for once and remembers the answer.
    rapl.rapl_is_available.cache_clear()
    nvidia.nvml_is_available.cache_clear()
    amd.amdsmi_is_available.cache_clear()
    caplog.set_level(logging.DEBUG)
    logger = logging.getLogger("zeus")
    logger.setLevel(logging.DEBUG)
    try:
        detect_meter([])
        detect_meter([0])
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(logging.NOTSET)
    assert not [record for record in caplog.records if record.name.startswith("zeus")]
    assert capfd.readouterr() == ("", "")


def test_gpu_counters_are_added_from_the_start_of_the_meter() -> None:
    meter = gpu_meter(
        [3, 1],
        ScriptedGpu(1, [1_000, 2_500, 2_500]),
        ScriptedGpu(2, []),
        ScriptedGpu(3, [50_000, 50_000, 60_000]),
    )
    assert meter.source == "zeus:nvml"
    assert [meter.total_joules() for _ in range(2)] == [1.5, 11.5]


def test_a_driver_restart_never_lowers_the_total() -> None:
    meter = gpu_meter([0], ScriptedGpu(0, [9_000, 10_000, 400, 1_400]))
    assert [meter.total_joules() for _ in range(3)] == [1.0, 1.4, 2.4]


def test_a_gpu_that_does_not_answer_is_not_measured_until_it_does() -> None:
    meter = gpu_meter(
        [0, 1], ScriptedGpu(0, [0, 1_000, 2_000, 3_000]), ScriptedGpu(1, [0, 500, None, 800])
    )
    assert [meter.total_joules() for _ in range(3)] == [1.5, None, 3.8]


@given(st.lists(st.integers(0, 10_000), min_size=2))
def test_whatever_a_counter_says_the_total_never_falls(script_mj: list[int | None]) -> None:
    count = len(script_mj) - 1
    meter = gpu_meter([0], ScriptedGpu(0, script_mj))
    totals = [meter.total_joules() for _ in range(count)]
    assert totals == sorted(totals)
    assert totals[0] >= 0


def test_gpus_that_are_not_visible_or_have_no_counter_are_named() -> None:
    with pytest.raises(EnergyMeterError, match=r"asked for GPUs \[0, 4\], this process sees \[0\]"):
        gpu_meter([4, 0], ScriptedGpu(0, [0]))
    with pytest.raises(EnergyMeterError, match=r"GPUs \[1\] have no counter"):
        gpu_meter([0, 1], ScriptedGpu(0, [0]), ScriptedGpu(1, [0], has_counter=False))


def test_rapl_packages_and_their_dram_are_added_and_wraps_are_counted(tmp_path: Path) -> None:
    package = write_zone(tmp_path / "intel-rapl:0", "package-0", 900_000_000, 1_000_000_000)
    dram = write_zone(tmp_path / "intel-rapl:0" / "intel-rapl:0:0", "dram", 0, 500_000_000)
    write_zone(tmp_path / "intel-rapl:0" / "intel-rapl:0:1", "core", 0, 500_000_000)
    second = write_zone(tmp_path / "intel-rapl:1", "package-1", 5_000_000, 1_000_000_000)
    meter = cpu_meter(rapl_cpu(tmp_path, 0), rapl_cpu(tmp_path, 1))
    assert meter.source == "zeus:rapl"
    assert meter.total_joules() == 0.0
    package.write_text("950000000\n")
    dram.write_text("7000000\n")
    assert meter.total_joules() == pytest.approx(57.0)
    package.write_text("20000000\n")
    second.write_text("6000000\n")
    assert meter.total_joules() == pytest.approx(57.0 + 50.0 + 20.0 + 1.0)


def test_replicas_on_cores_of_one_machine_share_its_energy(tmp_path: Path) -> None:
    energy = write_zone(tmp_path / "intel-rapl:0", "package-0", 0, 1_000_000_000)
    pytest.importorskip("zeus")
    from replicas.zeus_energy import ZeusCpuMeter

    meters = [ZeusCpuMeter([rapl_cpu(tmp_path, 0)], share) for share in (0.25, 0.5, 0.25)]
    energy.write_text("80000000\n")
    assert [meter.total_joules() for meter in meters] == [20.0, 40.0, 20.0]
    assert {meter.source for meter in meters} == {"zeus:rapl-share"}
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"share is {share}"):
            ZeusCpuMeter([rapl_cpu(tmp_path, 0)], share)


def test_a_replica_on_some_cores_is_given_their_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_zone(tmp_path / "intel-rapl:0", "package-0", 0, 1_000_000_000)
    cpu = pytest.importorskip("zeus.device.cpu")
    monkeypatch.setattr(cpu, "get_cpus", lambda: SimpleNamespace(cpus=[rapl_cpu(tmp_path, 0)]))
    machine = os.cpu_count() or 1
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("0\n")
    meter = meter_of(MeterChoice(), simulated=False, gpus=[], cores=max(1, machine // 2))
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("80000000\n")
    assert meter.total_joules() == pytest.approx(80.0 * max(1, machine // 2) / machine)


DEVICE = modelled_device("a100_sxm", flops_per_token=1e9)


@pytest.mark.parametrize(
    ("choice", "simulated", "gpus", "source", "reason"),
    [
        (MeterChoice("none", DEVICE), True, [], "none", "energy.meter is none"),
        (MeterChoice("auto", DEVICE), True, [], "model:a100_sxm", ""),
        (MeterChoice("model", DEVICE), False, ["0"], "model:a100_sxm", ""),
        (MeterChoice("auto"), True, [], "none", "declare a power model"),
        (MeterChoice("model", reason="lacks idle_w"), False, [], "none", "lacks idle_w"),
        (MeterChoice("auto"), False, ["97"], "none", r"the GPUs \[97\]"),
        (MeterChoice("auto"), False, ["GPU-8f2"], "none", "GPUs GPU-8f2 are not named"),
        (MeterChoice("auto", DEVICE), False, ["97"], "model:a100_sxm", ""),
    ],
)
def test_a_power_model_stands_in_only_where_it_may(
    choice: MeterChoice, simulated: bool, gpus: list[str], source: str, reason: str
) -> None:
    pytest.importorskip("zeus")
    meter = meter_of(choice, simulated=simulated, gpus=gpus, cores=1)
    assert meter.source == source
    assert re.search(reason, meter.reason)
    assert bool(meter.reason) == (source == "none")


def test_the_platform_domain_is_not_counted_beside_its_packages(tmp_path: Path) -> None:
    write_zone(tmp_path / "intel-rapl:0", "package-0", 0, 1_000_000_000)
    platform = write_zone(tmp_path / "intel-rapl:1", "psys", 0, 1_000_000_000)
    meter = cpu_meter(rapl_cpu(tmp_path, 0), rapl_cpu(tmp_path, 1))
    platform.write_text("90000000\n")
    assert meter.total_joules() == 0.0
    with pytest.raises(EnergyMeterError, match="no CPU package"):
        cpu_meter(rapl_cpu(tmp_path, 1))


def test_a_rapl_file_that_disappears_is_not_measured(tmp_path: Path) -> None:
    energy = write_zone(tmp_path / "intel-rapl:0", "package-0", 0, 1_000_000_000)
    meter = cpu_meter(rapl_cpu(tmp_path, 0))
    energy.unlink()
    assert meter.total_joules() is None
    energy.write_text("3000000\n")
    assert meter.total_joules() == 3.0


def test_counters_behind_the_daemon_are_read_through_it() -> None:
    common = pytest.importorskip("zeus.device.cpu.common")

    class DaemonCpu:
        def __init__(self) -> None:
            self.readings = [(1_000.0, None), (3_000.0, 500.0)]

        def get_total_energy_consumption(self) -> Any:
            return common.CpuDramMeasurement(*self.readings.pop(0))

    meter = cpu_meter(DaemonCpu())
    assert meter.total_joules() == 2.5
