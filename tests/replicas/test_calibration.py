import asyncio
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas import calibration
from replicas.calibration import error_of, fit, load_step_time, save_step_time
from replicas.protocol import Generation, pack_tokens
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions
from replicas.step_time import LinearStepTime, StepTimeError, StepWork
from tests.replicas.virtual_loop import VirtualLoop, run_virtually

TRUTH = LinearStepTime(
    base_s=8e-3,
    per_prefill_token_s=4e-5,
    per_decode_token_s=3e-5,
    per_kv_token_s=5e-8,
    per_prefill_pair_s=2e-9,
)
COEFFICIENTS = (
    "base_s",
    "per_prefill_token_s",
    "per_decode_token_s",
    "per_kv_token_s",
    "per_prefill_pair_s",
)


def measured_steps(
    truth: LinearStepTime = TRUTH, *, count: int = 2000, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Steps of mixed batches whose durations vary by `noise`, relative."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        prefill = int(rng.choice([0, 0, *rng.integers(1, 2000, 1)]))
        before = int(rng.integers(0, 4000))
        decode = int(rng.integers(0 if prefill else 1, 200))
        work = StepWork(
            prefill,
            prefill * before + prefill * (prefill + 1) // 2,
            decode,
            decode * int(rng.integers(10, 4000)),
        )
        rows.append((truth.seconds(work) * float(np.exp(noise * rng.normal())), *work))
    return np.array(rows)


@settings(max_examples=25)
@given(
    st.builds(
        LinearStepTime,
        base_s=st.floats(1e-3, 0.1),
        per_prefill_token_s=st.floats(1e-6, 1e-3),
        per_decode_token_s=st.floats(1e-6, 1e-3),
        per_kv_token_s=st.floats(1e-9, 1e-6),
        per_prefill_pair_s=st.floats(1e-10, 1e-7),
    )
)
def test_exact_steps_give_the_coefficients_back(truth):
    found = fit(measured_steps(truth, count=400))
    for name in COEFFICIENTS:
        assert getattr(found.step_time, name) == pytest.approx(getattr(truth, name), rel=1e-3)
    assert found.error.p90 < 1e-4
    assert found.error.r2 > 0.9999


def test_noise_is_averaged_and_told():
    found = fit(measured_steps(noise=0.05))
    for name in COEFFICIENTS:
        assert getattr(found.step_time, name) == pytest.approx(getattr(TRUTH, name), rel=0.05)
    # The quantiles of |N(0, 0.05)|.
    assert found.error.median == pytest.approx(0.0337, rel=0.15)
    assert found.error.p90 == pytest.approx(0.082, rel=0.15)
    assert abs(found.error.total) < 0.02
    assert 0.9 < found.error.r2 < 1


def test_steps_that_were_held_up_stretch_the_fit_and_do_not_bend_it():
    steps = measured_steps(noise=0.02)
    held_up = np.random.default_rng(1).random(len(steps)) < 0.05
    undisturbed_s = steps[:, 0].sum()
    steps[held_up, 0] += 0.5
    stretched = steps[:, 0].sum() / undisturbed_s
    found = fit(steps)
    for name in COEFFICIENTS:
        assert getattr(found.step_time, name) == pytest.approx(
            stretched * getattr(TRUTH, name), rel=0.07
        )
    fitted_on = np.arange(len(steps)) % 5 != 4
    assert found.outliers == pytest.approx((held_up & fitted_on).sum(), rel=0.1)
    assert found.steps + found.outliers == fitted_on.sum()
    assert found.error.steps == (~fitted_on).sum()
    assert abs(found.error.total) < 0.1
    assert found.error.r2 < 0.5


def test_what_costs_nothing_is_not_made_negative():
    truth = LinearStepTime(0.01, 5e-5, 0.0, 0.0)
    found = fit(measured_steps(truth, noise=0.1, count=300)).step_time
    assert min(getattr(found, name) for name in COEFFICIENTS) >= 0
    assert found.base_s == pytest.approx(0.01, rel=0.1)


def test_the_fit_covers_the_steps_it_has_seen():
    steps = measured_steps()
    model = fit(steps).step_time
    seen = steps[np.arange(len(steps)) % 5 != 4, 1:].max(axis=0)
    assert model.covers(StepWork(*seen.tolist()))
    for field in StepWork._fields:
        work = StepWork(*seen.tolist())
        assert not model.covers(work._replace(**{field: getattr(work, field) + 1}))


def test_error_is_signed_in_total():
    steps = measured_steps()
    double = LinearStepTime(**{name: 2 * getattr(TRUTH, name) for name in COEFFICIENTS})
    error = error_of(double, steps)
    assert (error.median, error.p90, error.total) == pytest.approx((1.0, 1.0, 1.0))


def without(column: int) -> np.ndarray:
    steps = measured_steps(count=200)
    steps[:, column : column + 2] = 0
    return steps


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (measured_steps(count=99), "99 steps.*100"),
        (np.zeros((500, 5)), "^0 steps"),
        (without(1), "no step prefilled"),
        (without(3), "no step decoded"),
    ],
)
def test_too_little_is_refused(steps, message):
    with pytest.raises(StepTimeError, match=message):
        fit(steps)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_steps_of_no_measurable_length_are_refused():
    steps = measured_steps(count=200)
    steps[:, 0] *= 1e-310
    with pytest.raises(StepTimeError, match=r"no step time fits 160 .*infs"):
        fit(steps)


def test_a_solution_that_is_not_found_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "nnls", functools.partial(calibration.nnls, maxiter=1))
    with pytest.raises(StepTimeError, match=r"no step time fits 160 .*iterations"):
        fit(measured_steps(count=200))


def test_the_simulated_engine_gives_its_own_step_time_back():
    async def main(loop: VirtualLoop) -> np.ndarray:
        engine = SimulatedEngine(
            SimulatedEngineOptions(
                kv_blocks=4096, max_num_seqs=24, max_num_batched_tokens=256, step_time=TRUTH
            )
        )
        await engine.start()
        rng = np.random.default_rng(3)
        for i in range(60):
            await engine.submit([request(f"r{i}", int(n)) for n in rng.integers(1, 900, 1)])
            await asyncio.sleep(float(rng.exponential(0.4)))
        while engine.load().running or engine.load().waiting:
            await asyncio.sleep(1)
        steps = engine.steps()
        await engine.stop()
        return steps

    def request(name: str, prompt_tokens: int) -> Generation:
        sampling = {"max_tokens": 60, "extra_args": {"simulated_output_tokens": 50}}
        return Generation(name, "c", pack_tokens(range(prompt_tokens)), sampling=sampling)

    steps = run_virtually(main)
    found = fit(steps)
    for name in COEFFICIENTS:
        assert getattr(found.step_time, name) == pytest.approx(getattr(TRUTH, name), rel=1e-3)
    # Each of the 60 requests is prefilled once and decodes all its tokens but the first.
    assert steps[:, 3].sum() == 60 * 49


def test_a_file_keeps_the_step_time(tmp_path):
    found = fit(measured_steps(noise=0.05))
    path = tmp_path / "deep" / "step.yaml"
    save_step_time(path, found, "SmolLM2 on two cores")
    assert load_step_time(path) == found.step_time
    text = path.read_text()
    assert "SmolLM2 on two cores" in text
    assert f"median: {found.error.median}" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("base_s", "bass_s"), "bass_s"),
        (lambda text: text.replace("base_s: ", "base_s: -"), "base_s is -"),
        (lambda text: text.replace("base_s: ", "base_s: much"), "float"),
        (lambda text: text.replace("engine:", "motor:"), "motor|engine"),
        (lambda text: text.replace("decode_tokens:", "codes:"), "codes"),
        (lambda text: "a: [", "does not hold a step time"),
        (lambda text: "", "does not hold a step time"),
    ],
)
def test_a_spoilt_file_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "step.yaml"
    save_step_time(path, fit(measured_steps(count=200)), "test")
    path.write_text(change(path.read_text()))
    with pytest.raises(StepTimeError, match=message) as refused:
        load_step_time(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(StepTimeError, match="No such file"):
        load_step_time(tmp_path / "none.yaml")
    with pytest.raises(StepTimeError, match="cannot write"):
        save_step_time(tmp_path, fit(measured_steps(count=200)), "test")
