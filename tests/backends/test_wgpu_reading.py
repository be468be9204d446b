"""Results of a card are read by several threads, and by one that is interrupted."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lattice.backends.wgpu import native, open_device
from lattice.backends.wgpu.submit import Recorder


@pytest.fixture(scope="module")
def device():
    return open_device(software="LATTICE_TEST_CARD" not in os.environ)


def submitted(device, held, sources):
    """Submit copies to a buffer, and return their index."""
    encoder = device.handle.create_command_encoder()
    for source in sources:
        encoder.copy_buffer_to_buffer(source.buffer, 0, held, 0, source.size)
    return native.submit(device.queue, [encoder.finish()])


def test_threads_read_one_device_at_once(device):
    """A thread that polls gives others' answers, too: none is missed, and none comes when its place is gone."""

    def work(number: int) -> None:
        source, held = device.upload(np.full(64, number, np.uint32)), native.staging(device.handle, 256)
        for _ in range(400):
            found = native.read_mapped(device.handle, held, 256, submitted(device, held, [source]))
            assert set(np.frombuffer(found, np.uint32)) == {number}

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


@pytest.mark.skipif(sys.platform == "win32", reason="no signal of one's own process there")
def test_an_interrupt_while_a_result_is_awaited_is_one(device):
    large = device.upload(np.zeros(1 << 24, np.uint8))
    held = native.staging(device.handle, large.size)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100):
            native.read_mapped(device.handle, held, large.size, submitted(device, held, [large] * 100))
    found = native.read_mapped(device.handle, held, large.size, submitted(device, held, [large]))
    assert len(found) == large.size  # the device and the buffer go on


def test_a_spare_buffer_that_another_thread_took_is_made_anew(device, monkeypatch):
    class Raced(list):
        def __bool__(self) -> bool:
            """Say that there is one, which is gone by then."""
            return True

    monkeypatch.setattr(device, "spare", {256: Raced()})
    assert Recorder(device)._staging(100).size == 256
