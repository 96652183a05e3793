"""What is installed: a small base, extras that are named where they are missing, the wheel in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import surefoot
from surefoot.envs.atari import Atari
from surefoot.errors import UserError

ROOT = Path(__file__).parent.parent
EXTRAS = ("cv2", "imageio", "matplotlib", "tensorboard")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no extra were installed."""
    for name in [*EXTRAS, *(name for name in sys.modules if name.split(".")[0] in EXTRAS)]:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("base", "drawn_curves")
def test_a_run_needs_no_extra_for_its_card_and_film(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    surefoot.train("FrozenLake-v1", run_dir=tmp_path / "run", ranks=1, num_envs=2, num_steps=8, minibatch_size=16,
                   total_steps=32, eval_episodes=2)  # fmt: skip
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"report.md", "game.gif", "metrics.jsonl"}
    assert not (tmp_path / "run" / "tb").exists()
    assert "no curve: matplotlib is not installed: pip install 'surefoot[plots]'" in capfd.readouterr().err
    assert "curve.png" not in (tmp_path / "run" / "report.md").read_text()
    with pytest.raises(UserError, match=r"imageio is not installed: pip install 'surefoot\[mp4\]'"):
        surefoot.video(tmp_path / "run", tmp_path / "film.mp4")


@pytest.mark.usefixtures("base")
def test_what_needs_an_extra_says_which() -> None:
    with pytest.raises(UserError, match=r"cv2 is not installed: pip install 'surefoot\[atari\]'"):
        Atari("breakout").make()


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """Needs a package registry. The base takes below 150 MB without PyTorch and what that needs."""
    home = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    home |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "http"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
        return done.stdout

    run(sys.executable, "-m", "build", ROOT, "--outdir", tmp_path / "dist")
    built = sorted((tmp_path / "dist").iterdir())
    for name in ("tools", "env"):
        run(sys.executable, "-m", "venv", tmp_path / name)
    run(tmp_path / "tools" / "bin" / "pip", "install", "-q", "twine")
    run(tmp_path / "tools" / "bin" / "twine", "check", "--strict", *built)
    run(tmp_path / "tools" / "bin" / "pip", "install", "-q", "--no-deps", next(tmp_path.glob("dist/*.tar.gz")))
    binary = tmp_path / "env" / "bin"
    pytorch = torch.__version__.partition("+")[0]
    run(binary / "pip", "install", "-q", f"torch=={pytorch}")
    packages = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    size = lambda: sum(file.lstat().st_size for file in packages.rglob("*") if "__pycache__" not in file.parts)  # noqa: E731
    before = size()
    run(binary / "pip", "install", "-q", next(file for file in built if file.suffix == ".whl"))
    print(f"{(size() - before) / 1e6:.0f} MB beside PyTorch")
    assert size() - before < 150e6
    from_source = next((tmp_path / "tools" / "lib").glob("python*/site-packages/surefoot"))
    files = [
        {str(f.relative_to(top)): f.read_bytes() for f in top.rglob("*") if f.is_file() and f.suffix != ".pyc"}
        for top in (from_source, packages / "surefoot")
    ]
    assert files[0] == files[1]
    run(binary / "surefoot", "train", "CartPole-v1", "--total-steps", "4096", "--eval-episodes", "5")
    assert len(list((tmp_path / "runs").glob("CartPole-v1-*/report.md"))) == 1
    pong = ("--num-envs", "2", "--num-steps", "8", "--minibatch-size", "16", "--total-steps", "32", "--ranks", "2")
    run(binary / "surefoot", "train", "pong", *pong, "--eval-episodes", "1", "--eval-max-steps", "20", "--run-dir", "p")
    assert (tmp_path / "p" / "game.gif").exists()
