"""What holds for every test."""

import atexit
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A busy machine must not fail a test that is right: no test here is about time. Where it decides
# what may land, the same tree must always get the same verdict; elsewhere each run looks further.
settings.register_profile(
    "tiebreak",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tiebreak")

# What a command prints must not depend on the terminal that the tests were started from.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray of the module's own."""
    from tests.local_ray import local_ray  # not for tests that need no Ray

    with local_ray():
        yield


_SESSION = pytest.StashKey[pytest.Session]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remember the session, whose exit status other plugins may still change."""
    session.config.stash[_SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process with the verdict that was told.

    `ray.shutdown()` leaves threads of Ray's and gRPC's C++ behind. They go on while the process
    destroys what they use, and now and then one of them crashes it: a run in which every test had
    passed ended with SIGSEGV.
    """
    session = config.stash.get(_SESSION, None)
    if session is None or "ray" not in sys.modules:
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(session.exitstatus)
