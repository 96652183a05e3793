"""Other devices than the processor: a GPU where there is one, and a second device that computes on the processor.

The second device is compiled for these tests, in their own process (`pytest -m device`): autograd counts devices when
it first runs. It stands in for a GPU in what can be wrong without one: tensors of two devices in one operation, and
tensors of the device where NumPy needs the processor's.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import surefoot
from helpers import rows
from surefoot.algorithm.objectives import AdaptivePenalty, Surrogate, TrustRegion
from surefoot.algorithm.schedules import FixedRate
from surefoot.config import Config
from surefoot.models.memory import GRU, LSTM
from surefoot.models.networks import ImpalaCNN, NatureCNN, SmallCNN
from surefoot.models.optimizers import Muon
from surefoot.presets import find

pytestmark = pytest.mark.device

METRICS = ("kl", "entropy", "value_loss", "grad_norm", "explained_variance")
PICTURES: dict[str, Any] = {"num_envs": 2, "num_steps": (16,), "minibatch_size": 16, "total_steps": 64, "bf16": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one of many": ("worlds:Catch-v0", {}),
    "numbers": ("worlds:Target-v0", {"optimizer": Muon()}),
    "pink noise": ("worlds:Target-v0", {"noise_color": 1.0, "noise_until": 1.0, "noise_rarity": 0}),
    "several at once": ("worlds:Switches-v0", {}),
    "masks": ("worlds:Doors-v0", {}),
    "a Dict with pictures": ("worlds:Nested-v0", {}),
    "a KL penalty": ("worlds:Catch-v0", {"objective": Surrogate(), "kl_penalty": AdaptivePenalty()}),
    "TRPO": ("worlds:Catch-v0", {"objective": TrustRegion(), "learning_rate": FixedRate(1e-3)}),
    "the lesson": ("ppo", {"num_envs": 2, "num_steps": (16,), "total_iterations": 2}),
    "pong": ("pong", PICTURES),
    "TRPO on pictures": (
        "pong",
        PICTURES
        | {"objective": TrustRegion(fisher_every=2), "learning_rate": FixedRate(1e-3)}
        | {"network": SmallCNN(hidden=32, separate_critic=True)},
    ),
    "NatureCNN": ("pong", PICTURES | {"network": NatureCNN()}),
    "ImpalaCNN": ("pong", PICTURES | {"network": ImpalaCNN()}),
    "GRU": ("worlds:Catch-v0", {"memory": GRU()}),
    "LSTM": ("worlds:Target-v0", {"memory": LSTM()}),
}


def second_device(folder: Path) -> str:
    """Compile and load second_device.cpp; the device's name."""
    if sys.platform != "linux":
        pytest.skip("compiled on Linux only")
    from torch.utils import cpp_extension as torch_files

    source, library = Path(__file__).with_name("second_device.cpp"), folder / "second_device.so"
    headers = [f"-I{path}" for path in (*torch_files.include_paths(), sysconfig.get_path("include"))]
    libraries = [*(f"-L{path}" for path in torch_files.library_paths()), "-lc10", "-ltorch_cpu"]
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O0", *headers, source, "-o", library, *libraries]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no g++ here")
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("second")
    there = ModuleType("torch.second")
    vars(there).update(is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0)
    vars(there).update(_is_in_bad_fork=lambda: False, manual_seed_all=lambda _: None)
    torch._register_device_module("second", there)
    return "second"


@pytest.fixture(scope="module", params=[*["cuda"] * torch.cuda.is_available(), "second"])
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return request.param if request.param == "cuda" else second_device(tmp_path_factory.mktemp("second"))


@pytest.mark.parametrize("case", CASES)
def test_a_device_learns_what_the_processor_learns(case: str, device: str, small: Config, tmp_path: Path) -> None:
    """The same metrics up to rounding; and the run goes on, and its policy plays, on the processor."""
    task, fields = CASES[case]
    if device == "second" and "memory" in fields:
        pytest.skip("PyTorch's GRU and LSTM call operations that a second device would have to write itself")
    cfg = (
        find(task)
        if task in ("ppo", "pong")
        else replace(
            find(task),
            **{k: getattr(small, k) for k in ("num_envs", "num_steps", "minibatch_size", "num_epochs", "total_steps")},
        )
    )
    cfg = replace(cfg, **{"eval_episodes": 0, "save_every": 1e9} | fields)
    runs = {where: tmp_path / where for where in ("cpu", device)}
    for where, run_dir in runs.items():
        surefoot.train(replace(cfg, device=where), run_dir=run_dir, ranks=1, quiet=True)
    here, there = (rows(run_dir) for run_dir in runs.values())
    for row, other in zip(here, there, strict=True):
        for name in METRICS:
            assert row.get(name) == pytest.approx(other.get(name), rel=0.02, abs=1e-4), (row["step"], name)
    policy = surefoot.load_policy(runs[device], device)[0]
    assert next(policy.parameters()).device.type == device
    end = {"total_iterations": 3} if cfg.total_iterations else {"total_steps": 2 * cfg.total_steps}
    assert surefoot.resume(runs[device], quiet=True, device="cpu", **end).config.device == "cpu"


def test_tensors_of_two_devices_do_not_mix(device: str) -> None:
    """Without this the tests above would show nothing."""
    x, y = torch.ones(2, 2, device=device), torch.ones(2, 2)
    places, image = torch.zeros(1, dtype=torch.int64), torch.ones(1, 1, 2, 2)
    mixtures: list[Callable[[], Any]] = [
        lambda: x + y,
        lambda: x @ y,
        lambda: torch.where(x > 0, x, y),
        lambda: torch.cat([x, y]),
        lambda: x.index_select(0, places),
        lambda: x.index_add(0, places.to(device), y[:1]),
        lambda: torch.nn.functional.conv2d(image.to(device), image),
    ]
    for both in mixtures:
        with pytest.raises(RuntimeError, match=r"device| on cpu"):
            both()
    with pytest.raises(TypeError, match="device"):
        x.numpy()
    assert torch.equal((x + 1).cpu(), y + 1)
    assert torch.equal(x[places].cpu(), y[:1])  # that is allowed
