"""What all tests share: one thread, and small Configs that train in seconds."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(  # for ranks; an empty entry would be the present directory
    filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
)
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="surefoot-state-")  # the key of the user who tests

import pytest

import worlds  # noqa: F401 (registers the environments)

if TYPE_CHECKING:
    from surefoot.config import Config

gc.disable()  # modules and tests stay: looking through them while they become more costs a quarter of the start


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def without_what_only_takes_time() -> Iterator[None]:
    """One thread; runs in this process draw no learning curve (its file says so) and do not wait for the disk.

    Drawing takes as long as all the rest of a small run; `drawn_curves` brings it back. Other processes do both.
    """
    import torch

    from surefoot.runs import worker
    from surefoot.runs.files import replace_file

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "curve", lambda _, path: replace_file(path, b"not drawn"))
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def drawn_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.runs import report_card, worker

    monkeypatch.setattr(worker, "curve", report_card.curve)


@pytest.fixture
def signals_interrupt() -> Iterator[None]:
    """SIGINT and SIGTERM do here what they do in the command line: KeyboardInterrupt."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, old, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def small() -> Config:
    """Catch in a few seconds, with minibatches, a fixed learning rate and no evaluation."""
    from surefoot.algorithm.schedules import FixedRate
    from surefoot.envs.gym import Gymnasium
    from surefoot.models.networks import MLP
    from surefoot.presets import CARTPOLE

    return replace(
        CARTPOLE,
        task="catch",
        env=Gymnasium("worlds:Catch-v0"),
        network=MLP((16,)),
        num_envs=8,
        num_steps=(16,),
        minibatch_size=32,
        num_epochs=2,
        learning_rate=FixedRate(1e-3),
        total_steps=8 * 16 * 6,
        eval_episodes=0,
        save_every=1e9,
    )
