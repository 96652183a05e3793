"""A file never names code: what a file asks to have run is asked for first, whoever reads it and however it is said."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import surefoot
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.envs.atari import Atari, Pong
from surefoot.envs.gym import Gymnasium, describe
from surefoot.envs.gym_env import MASK_SOURCES
from surefoot.envs.interface import EnvSpec, make
from surefoot.errors import UserError
from surefoot.models.networks import MLP
from surefoot.runs.files import seal, unseal
from surefoot.runs.policy_file import policy_bytes
from surefoot.runs.trust import runs_code, state_dir

MARKING = """
import gymnasium
from pathlib import Path
def mark(): Path({mark!r}).write_text("ran")
mark()
def make(**how):
    mark()
    return gymnasium.make("CartPole-v1", **how)
class Marking:
    def __new__(cls, **how): return make(**how)
gymnasium.register("Marking-v0", "marking:Marking")
"""
TINY: dict[str, Any] = {"num_envs": 2, "num_steps": (8,), "minibatch_size": 8, "num_epochs": 1, "network": MLP((4,))}
TINY |= {"total_steps": 32, "eval_episodes": 1}
REFUSED = [
    ("marking:make", ()),
    ("marking:Marking-v0", ()),
    ("marking:CartPole-v1", ()),  # which Gymnasium has, but only after the import
    ("marking:make.__call__", ()),
    ("marking:make#0", ()),
    ("CartPole-v1:marking", ()),
    ("CartPole-v1\nmarking:make", ()),
    ("\u202emarking:make", ()),
    ("marking: CartPole-v1", ()),
    ("Foreign-v0", ()),  # registered by a user's program
    ("Function-v0", ()),
    ("Wrapped-v0", ()),
    ("Foreign", ()),  # as Gymnasium completes it
    ("CartPole-v1", ("sutton_barto_reward=[1, 2]",)),
    ("CartPole-v1", ("render_mode=__import__('marking')",)),
    ("CartPole-v1", ("render_mode={'a': 1}",)),
    ("HalfCheetah-v5", ("xml_file=/tmp/other.xml",)),
    ("HalfCheetah-v5", ("xml_file=../other.xml",)),
    ("HalfCheetah-v5", ("xml_file='./other.xml'",)),
    ("HalfCheetah-v5", ("xml_file=~/other.xml",)),
]
ALLOWED = [
    Pong(),
    Atari("breakout"),
    Gymnasium("CartPole-v1"),
    Gymnasium("CartPole-v1", ("sutton_barto_reward=True", "max_episode_steps=50", "render_mode=None")),
    Gymnasium("FrozenLake-v1", ("map_name=8x8", "is_slippery=False")),
    Gymnasium("FrozenLake-v1", ("map_name='8x8'",)),
    Gymnasium("HalfCheetah-v5", ("reset_noise_scale=-1.5e-3",)),
]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a module `marking` leaves when any of its code runs."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "marking.py").write_text(MARKING.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path / "home")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'home'}{os.pathsep}{os.environ['PYTHONPATH']}")
    monkeypatch.delitem(sys.modules, "marking", raising=False)
    registry = dict(gymnasium.registry)
    wrapper = gymnasium.envs.registration.WrapperSpec("w", "marking:Marking", {})
    plain = registry["CartPole-v1"].entry_point
    gymnasium.register("Foreign-v0", "marking:Marking")
    gymnasium.register("Function-v0", lambda: (tmp_path / "mark").write_text("ran"))
    gymnasium.register("Wrapped-v0", plain, additional_wrappers=(wrapper,))
    monkeypatch.setattr("surefoot.envs.gym.LOCAL_MAKERS", {"marking:make#0": lambda: (tmp_path / "mark").touch()})
    MASK_SOURCES.clear()
    yield tmp_path / "mark"
    gymnasium.registry.clear()
    gymnasium.registry.update(registry)


def policy_file(env: EnvSpec, path: Path) -> Path:
    """A policy for CartPole whose header names another environment."""
    game = make(Gymnasium("CartPole-v1"))
    cfg = Config(env=env, network=MLP((4,)), task="mine")
    path.write_bytes(policy_bytes(cfg.network.build(game.observation_space, game.action_space), cfg, 0))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("trained") / "run"
    surefoot.train("CartPole-v1", run_dir=where, ranks=1, quiet=True, **TINY)
    return where


def rewritten(run: Path, env: EnvSpec, to: Path) -> Path:
    """A copy of a run in which every file names another environment, with digests that fit."""
    shutil.copytree(run, to)
    described = Config(env=env).to_json()["env"]
    for file in (to / "config.json", *to.glob("checkpoints/*/state.json")):
        facts = unseal(file.read_bytes())
        facts["config"]["env"] = described
        file.write_bytes(seal(facts))
    policy_file(env, to / "policy.safetensors")
    return to


@pytest.mark.parametrize(("id", "kwargs"), REFUSED, ids=lambda x: ascii(x)[1:40])
def test_no_reader_of_a_file_runs_what_it_names(
    id: str, kwargs: tuple[str, ...], mark: Path, trained: Path, tmp_path: Path
) -> None:
    env = Gymnasium(id, kwargs)
    file, run = policy_file(env, tmp_path / "policy"), rewritten(trained, env, tmp_path / "run")
    for reader in (
        lambda: surefoot.load_policy(file),
        lambda: surefoot.load_policy(run),
        lambda: surefoot.evaluate(file, episodes=1),
        lambda: surefoot.video(run, tmp_path / "film.gif", max_steps=1),
        lambda: surefoot.resume(run, ranks=1, quiet=True, total_steps=64),
    ):
        with pytest.raises(
            UserError, match=r"^'[^']*' asks to (import|make) .*: where you trust it, .*--trust"
        ) as said:
            reader()
        assert str(said.value).isprintable()
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"state\.json' asks to "):
        surefoot.resume(run, ranks=1, quiet=True, total_steps=64)
    assert not mark.exists()
    assert "marking" not in sys.modules


@pytest.mark.parametrize("env", ALLOWED, ids=str)
def test_environments_that_gymnasium_and_ale_bring_are_made_without_asking(env: EnvSpec) -> None:
    assert runs_code(env) == ""


def test_an_id_that_is_not_registered_is_refused_by_its_own_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no environment 'CartPoel-v1' .* did you mean CartPole-v1"):
        surefoot.load_policy(policy_file(Gymnasium("CartPoel-v1"), tmp_path / "policy"))


@pytest.mark.long
def test_the_command_asks_in_a_sentence_and_takes_a_word(
    mark: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = Gymnasium("marking:make", ("max_episode_steps=9",))
    file, run = policy_file(env, tmp_path / "policy"), rewritten(trained, env, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    evaluate, film = (
        ["evaluate", str(file), "--episodes", "1"],
        ["video", str(run), "--out", "a.gif", "--max-steps", "2"],
    )
    resume = ["resume", str(run), "--total-steps", "48", "--ranks", "1", "--quiet"]
    for command in (evaluate, film, resume):
        assert main(command) == 2
        *notes, said = capsys.readouterr().err.splitlines()
        assert all("and the newest checkpoint of step" in text for text in notes)  # the policy was put there later
        assert "asks to import marking and call make with max_episode_steps=9" in said
        assert "--trust" in said
    assert main([*evaluate, "--task", "CartPole-v1"]) == main([*film, "--task", "CartPole-v1"]) == 0
    assert len(surefoot.evaluate(file, episodes=2, env="CartPole-v1").scores) == 2
    assert not mark.exists()
    for command in (evaluate, film, resume):
        mark.unlink(missing_ok=True)
        MASK_SOURCES.clear()
        assert main([*command, "--trust"]) == 0
        assert mark.exists()


def test_a_run_that_starts_from_a_file_makes_its_own_environment_alone(mark: Path, tmp_path: Path) -> None:
    file = policy_file(Gymnasium("marking:make"), tmp_path / "policy")
    run = surefoot.train("CartPole-v1", source=file, run_dir=tmp_path / "a", ranks=1, quiet=True, **TINY)
    assert run.steps == 32
    assert not mark.exists()


@pytest.mark.long
def test_a_run_that_was_begun_here_is_not_asked_for_and_a_copy_is(mark: Path, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    surefoot.train("marking:make", run_dir=run, ranks=1, quiet=True, **TINY)
    assert mark.exists()
    shutil.copytree(run, copy)
    assert surefoot.resume(run, ranks=1, quiet=True, total_steps=48).steps == 48
    for own in (run, run / "policy.safetensors", next(run.glob("checkpoints/*"))):
        assert len(surefoot.evaluate(own, episodes=1).scores) == 1
    surefoot.video(run, tmp_path / "a.gif", max_steps=2)
    (run / "config.json").unlink()
    surefoot.resume(run, ranks=1, quiet=True, total_steps=64)
    alone = Path(shutil.copy(run / "policy.safetensors", tmp_path / "alone"))
    run.rename(tmp_path / "away")
    shutil.copytree(copy, run)  # where the run was: another folder
    for stranger in (copy, run, tmp_path / "away"):
        with pytest.raises(UserError, match="asks to import marking"):
            surefoot.resume(stranger, ranks=1, quiet=True, total_steps=80)
        with pytest.raises(UserError, match="asks to import marking"):
            surefoot.load_policy(stranger)
    with pytest.raises(UserError, match="asks to import marking"):
        surefoot.load_policy(alone)
    assert surefoot.resume(copy, ranks=1, quiet=True, trust=True, total_steps=64).steps == 64
    assert surefoot.resume(copy, ranks=1, quiet=True, total_steps=80).steps == 80  # its user has agreed, once


@pytest.mark.usefixtures("mark")
def test_the_seal_is_of_one_environment(tmp_path: Path) -> None:
    run = tmp_path / "run"
    surefoot.train("marking:make", run_dir=run, ranks=1, quiet=True, **TINY)
    file = run / "config.json"
    facts = unseal(file.read_bytes())
    for change in ({"id": "marking:mark"}, {"kwargs": ["x=1"]}):
        file.write_bytes(seal(facts | {"config": facts["config"] | {"env": facts["config"]["env"] | change}}))
        with pytest.raises(UserError, match="asks to import marking"):
            surefoot.resume(run, ranks=1, quiet=True, total_steps=64)
    for begun in (None, "", "0" * 64, 7, [facts["begun"]], "\u00e9"):
        file.write_bytes(seal(facts | {"begun": begun}))
        with pytest.raises(UserError, match="asks to import marking"):
            surefoot.resume(run, ranks=1, quiet=True, total_steps=64)


@pytest.mark.long
@pytest.mark.usefixtures("mark")
def test_the_key_is_the_users_alone_and_without_one_runs_train_and_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = tmp_path / "run"
    surefoot.train("marking:make", run_dir=run, ranks=1, quiet=True, **TINY)
    key = state_dir() / "key"
    assert (stat.S_IMODE(key.stat().st_mode), stat.S_IMODE(key.parent.stat().st_mode)) == (0o600, 0o700)
    assert len(key.read_bytes()) == 32
    surefoot.load_policy(run)
    for place in (key, key.parent):
        before = place.stat().st_mode
        place.chmod(before | 0o040)
        with pytest.raises(UserError, match="asks to import marking"):
            surefoot.load_policy(run)
        place.chmod(before)
    surefoot.load_policy(run)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    other = surefoot.train("marking:make", run_dir=tmp_path / "other", ranks=1, quiet=True, **TINY)
    assert other.evaluation is not None  # it and the film are of the run that has just trained
    assert (other.path / "game.gif").exists()
    with pytest.raises(UserError, match="asks to import marking"):
        surefoot.resume(other.path, ranks=1, quiet=True, total_steps=64)


def test_a_function_of_this_process_is_known_to_its_own_run_alone(tmp_path: Path) -> None:
    env = describe(lambda: gymnasium.make("CartPole-v1"))
    cfg = replace(surefoot_config(env), **TINY)
    run = surefoot.train(cfg, run_dir=tmp_path / "run", quiet=True)
    assert len(surefoot.evaluate(run.path, episodes=1).scores) == 1
    with pytest.raises(UserError, match="asks to "):
        surefoot.load_policy(policy_file(env, tmp_path / "policy"))


def surefoot_config(env: EnvSpec) -> Config:
    from surefoot.presets import CARTPOLE

    return replace(CARTPOLE, env=env)
