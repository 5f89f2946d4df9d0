"""Several processes, each with devices of its own, on this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


SCRIPT = Path(__file__).parent / "two_processes.py"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def begin(folder, task, processes, devices):
    """Starts the processes of a task; `devices` is for each of them."""
    port = free_port()
    settings = ("XLA_FLAGS", "JAX_DEFAULT_PRNG_IMPL", "JAX_DISABLE_JIT")
    env = {name: x for name, x in os.environ.items() if name not in settings}
    return [
        subprocess.Popen(
            [
                sys.executable,
                SCRIPT,
                folder,
                task,
                *map(str, (port, processes, index, devices)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for index in range(processes)
    ]


def run(folder, task, processes, devices):
    running = begin(folder, task, processes, devices)
    try:
        told = [each.communicate(timeout=300)[0] for each in running]
    finally:
        for each in running:
            each.kill()
    for each, text in zip(running, told, strict=True):
        assert each.returncode == 0, text


def saved(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


def assert_equal(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


@pytest.mark.slow
def test_an_ensemble_over_two_processes(tmp_path):
    run(tmp_path, "train", 2, 4)
    two = saved(tmp_path / "all_0.npz")
    assert_equal(two, saved(tmp_path / "all_1.npz"))
    taken = [x for index in (0, -1) for x in (array[index] for array in two)]
    for process in range(2):
        assert_equal(saved(tmp_path / f"taken_{process}.npz"), taken)

    (alone := tmp_path / "alone").mkdir()
    run(alone, "train", 1, 1)
    assert_equal(saved(tmp_path / "made_0.npz"), saved(alone / "made_0.npz"))
    for one, other in zip(two, saved(alone / "all_0.npz"), strict=True):
        # Lanes that were drawn anew are the same; training adds in another order.
        assert_equal([one[::5]], [other[::5]])
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)

    for processes, devices in ((1, 1), (1, 4), (2, 2)):
        run(tmp_path, "load", processes, devices)
        assert_equal(saved(tmp_path / "loaded.npz"), two)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_saves(tmp_path):
    running = begin(tmp_path, "die", 2, 4)
    try:
        checkpoints = tmp_path / "checkpoints"
        end = time.monotonic() + 300
        while not being_written(checkpoints):
            assert all(each.poll() is None for each in running)
            assert time.monotonic() < end
            time.sleep(0.002)
        running[1].kill()
        running[1].wait()
        assert not (checkpoints / "2").exists(), "it was too quick to be killed"
        with contextlib.suppress(subprocess.TimeoutExpired):
            # What the other one does about it is up to the checkpointer.
            running[0].wait(timeout=5)
    finally:
        for each in running:
            each.kill()
            each.communicate()
    run(tmp_path, "load wide", 1, 4)
    assert_equal(saved(tmp_path / "loaded.npz"), saved(tmp_path / "first.npz"))


def being_written(checkpoints):
    """Whether files of the second checkpoint are there, under a preliminary name."""
    if not checkpoints.exists():
        return False
    begun = [x for x in checkpoints.iterdir() if x.name.startswith("2.")]
    return any(file.is_file() for x in begun for file in x.rglob("*"))
