"""Evaluation: exact scores, fresh seeds, the same whatever the number of parallel games, and a true interval."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

import makers
import surefoot
from processes import Ear, gone_within
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.envs.atari import Atari, Pong, PongEnv
from surefoot.envs.gym import Gymnasium, describe
from surefoot.envs.interface import EnvSpec, make
from surefoot.errors import Fault, UserError
from surefoot.models.networks import MLP, ImpalaCNN, NatureCNN, Network, SmallCNN
from surefoot.models.policy import Policy
from surefoot.presets import find
from surefoot.runs import evaluation_workers
from surefoot.runs import policy_file as policy_file_module
from surefoot.runs.evaluation import Evaluation, evaluate
from surefoot.runs.evaluation_workers import evaluate_run
from surefoot.runs.policy_file import least_size, policy_bytes

SMALL = MLP((8,))


def policy_for(env: EnvSpec, network: Network = SMALL) -> Policy:
    game = env.make()
    torch.manual_seed(0)
    return network.build(game.observation_space, game.action_space)


def policy_file(env: EnvSpec, path: Path, network: Network = SMALL) -> Path:
    """A policy that has learned nothing, as a run leaves it."""
    path.write_bytes(policy_bytes(policy_for(env, network), Config(env=env, network=network, task="mine"), 0))
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `mine`, which this process finds by its sys.path alone."""
    (tmp_path / "home").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "home")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    gymnasium.registry.pop("Failing-v0", None)
    return tmp_path / "home" / "mine.py"


def test_a_scripted_game_scores_what_adds_up_by_hand() -> None:
    env = Gymnasium("worlds:Scripted-terminated-v0")
    policy = policy_for(env)
    with torch.no_grad():
        policy.actor.bias[:] = torch.tensor([0.0, 100.0])
    result = evaluate(policy, env, range(5), greedy=True)
    assert result.scores == [36.0] * 5  # 1 + 2 + 3 and three times 10
    assert result.lengths == [3] * 5


def test_the_number_of_parallel_games_changes_nothing() -> None:
    env = Gymnasium("CartPole-v1")
    policy = policy_for(env).double()
    one, many = (evaluate(policy, env, range(12), seed=3, parallel=n) for n in (1, 7))
    assert one.scores == many.scores
    assert len(set(one.scores)) > 3
    assert evaluate(policy, env, range(12), seed=4).scores != one.scores
    assert evaluate(policy, env, range(3, 12, 4), seed=3).scores == one.scores[3:12:4]


def test_the_seeds_are_not_those_of_training() -> None:
    from surefoot.rng import Purpose, integer

    trained = {integer(1, Purpose.RESETS, n, k) for n in range(32) for k in range(100)}
    assert not trained & {integer(1, Purpose.EVALUATION, 0, e) for e in range(100)}


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """95 % intervals from 200 samples of 60 die throws contain 3.5 in about 95 % of them (at least 88 %)."""
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(200):
        scores = rng.integers(1, 7, 60).astype(float).tolist()
        low, high = Evaluation(scores, [1] * 60, False, k, 0.0).interval
        hits += low <= 3.5 <= high
    assert 176 <= hits <= 199


@pytest.mark.parametrize(
    ("scores", "iqm"),
    [
        ([5, 9000, 3, -1000, 6, 2, 7, 4], 4.5),  # of 3, 4, 5, 6
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 100], 4.5),  # two of ten at each end: of 2 to 7
        ([1, 2, 3, 4, 50, 6, 7], 4.4),  # one of seven: of 2, 3, 4, 6, 7
        ([1, 2, 6], 3.0),  # nothing to cut
        ([3], 3.0),
    ],
)
def test_the_interquartile_mean_by_hand(scores: list[float], iqm: float) -> None:
    facts = Evaluation(scores, [1] * len(scores), False, 0, 0.0).to_json()
    assert facts["iqm"] == pytest.approx(iqm)
    assert facts["iqm_low"] <= facts["iqm"] <= facts["iqm_high"]
    if len(scores) < 4:
        assert (facts["iqm_low"], facts["iqm_high"]) == (facts["low"], facts["high"])  # the same resamples


def test_one_wild_score_moves_the_mean_and_not_the_interquartile_mean() -> None:
    tame = np.random.default_rng(0).normal(10, 1, 40).tolist()
    wild = Evaluation([*tame[:-1], 10_000.0], [1] * 40, False, 0, 0.0)
    assert wild.mean > 200
    low, high = wild.iqm_interval
    assert 9 < low < wild.iqm < high < 11
    assert wild.interval[1] > 500


def test_a_policy_loads_without_its_run(small, tmp_path: Path) -> None:
    run = surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    file = (run.path / "policy.safetensors").rename(tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match="asks to import worlds and make Catch-v0"):
        surefoot.load_policy(file)
    policy, env, facts = surefoot.load_policy(file, trust=True)
    assert env == small.env
    assert facts["steps"] == run.steps
    found = evaluate(policy, env, range(4))
    assert found.lengths == [6] * 4
    written = {k: v for k, v in found.to_json().items() if not k.startswith("iqm")}  # as before there was one
    (run.path / "evaluation.json").write_text(json.dumps(written))
    assert surefoot.load(run.path).evaluation == found


def test_a_policy_whose_tensors_were_changed_is_refused_and_one_without_a_digest_loads(tmp_path: Path) -> None:
    file = policy_file(Gymnasium("CartPole-v1"), tmp_path / "policy")
    data = file.read_bytes()
    for at in (-1, -100):
        changed = bytearray(data)
        changed[at] ^= 1
        file.write_bytes(changed)
        with pytest.raises(UserError, match="its tensors have been changed since it was written"):
            surefoot.load_policy(file)
    policy, _, facts = surefoot.load_policy(policy_file(Gymnasium("CartPole-v1"), file))
    del facts["sha256"]  # as earlier versions wrote it
    file.write_bytes(save_tensors(policy.state_dict(), {"surefoot": json.dumps(facts)}))
    again = surefoot.load_policy(file)[0].state_dict()
    assert all(torch.equal(x, again[k]) for k, x in policy.state_dict().items())


def changed_header(file: Path, **changes: Any) -> None:
    """A policy file with the same tensors and other facts in its header; None: without it."""
    data = file.read_bytes()
    header, tensors = policy_file_module.split(data)
    facts = json.loads(header["__metadata__"]["surefoot"]) | changes
    kept = {k: v for k, v in facts.items() if v is not None}
    head = json.dumps(header | {"__metadata__": {"surefoot": json.dumps(kept)}}).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + tensors)


@pytest.mark.parametrize(
    "network",
    [
        {"type": "MLP", "hidden": [16_384] * 3},
        {"type": "SmallCNN", "kernel": [16_384, 4], "stride": [1, 1]},
        {"type": "SmallCNN", "filters": [16_384, 16_384]},
        {"type": "SmallCNN", "hidden": 16_384},
    ],
    ids=str,
)
def test_a_network_that_is_larger_than_its_file_is_refused_before_it_is_built(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = policy_file(Gymnasium("CartPole-v1"), tmp_path / "policy")
    changed_header(file, network=network)
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(UserError, match="does not fit its own network, which has more parameters than the file"):
        surefoot.load_policy(file)


@pytest.mark.parametrize("preset", ["pong", "pong-lesson", "ALE/Breakout-v5", "NatureCNN", "ImpalaCNN", "CartPole-v1"])
def test_the_lower_bound_of_a_networks_size_is_one_and_near(preset: str) -> None:
    kinds = {"NatureCNN": NatureCNN(), "ImpalaCNN": ImpalaCNN()}
    cfg = find("ALE/Breakout-v5", network=kinds[preset]) if preset in kinds else find(preset)
    game = make(cfg.env)
    policy = cfg.network.build(game.observation_space, game.action_space)
    shape = game.observation_space.shape
    game.close()
    size = sum(x.numel() for x in policy.state_dict().values())
    assert least_size(cfg.network) <= least_size(cfg.network, shape) <= size
    assert least_size(cfg.network, shape) > 0.8 * size
    if isinstance(cfg.env, Atari):
        assert least_size(cfg.network, (16_384, 16_384)) > 1e9


@pytest.mark.parametrize(
    "changes",
    [
        {"task": None},
        {"returns": [10**400, 0, 0]},
        {"task": 7},
        {"env": None},
        {"network": []},
        {"format": None},
        {"returns": ["x"]},
        {"returns": 1},
    ],
    ids=str,
)
def test_a_header_that_lacks_something_is_a_sentence(changes: dict[str, Any], tmp_path: Path) -> None:
    file = policy_file(Gymnasium("CartPole-v1"), tmp_path / "policy")
    changed_header(file, **changes)
    with pytest.raises(UserError):
        surefoot.evaluate(file, episodes=1)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    policy = policy_for(Gymnasium("CartPole-v1"))
    with torch.no_grad():
        policy.actor.bias[0] = float("nan")
    file = tmp_path / "policy"
    file.write_bytes(policy_bytes(policy, Config(env=Gymnasium("CartPole-v1"), network=SMALL), 0))
    with pytest.raises(UserError, match=r"not all numbers of 'actor\.bias' are finite; --trust"):
        surefoot.load_policy(file)
    assert torch.isnan(surefoot.load_policy(file, trust=True)[0].actor.bias[0])


@pytest.mark.parametrize("count", [1, 3])
def test_every_episode_counts_once(count: int) -> None:
    env = Gymnasium("CartPole-v1")
    seen: list[int] = []
    result = evaluate(policy_for(env), env, range(count), parallel=2, progress=seen.append)
    assert seen == list(range(1, count + 1))
    assert len(result.scores) == count
    assert result.scores == [float(n) for n in result.lengths]  # CartPole pays 1 a step


# Several processes


@pytest.mark.long
def test_processes_share_the_episodes_of_an_environment_that_is_given(module: Path, tmp_path: Path) -> None:
    module.write_text("import gymnasium\ndef short(): return gymnasium.make('CartPole-v1', max_episode_steps=25)")
    file, seen = policy_file(Gymnasium("CartPole-v1"), tmp_path / "policy"), list[int]()
    own, one = (surefoot.evaluate(file, episodes=7, seed=3, env=env) for env in (None, Gymnasium("mine:short")))
    two = evaluate_run(file, 7, 3, env=Gymnasium("mine:short"), ranks=2, progress=seen.append)
    assert (two.scores, two.lengths, two.seed, two.greedy) == (one.scores, one.lengths, 3, False)
    assert max(one.lengths) == 25 < max(own.lengths)
    assert len(set(one.scores)) > 2
    assert seen == sorted(seen)
    assert seen[-1] == 7


FAILING = """
import gymnasium, os, signal, worlds
class Failing(worlds.Corridor):  # which is endless
    def step(self, action):
        {}
        return super().step(action)
gymnasium.register("Failing-v0", Failing, disable_env_checker=True)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("deed", "says"),
    [
        (
            "raise OSError('it broke')",
            r"the environment failed in evaluation episode 1 .*step 1: OSError: it broke",
        ),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "rank 1 was ended by SIGKILL, perhaps for want of memory",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_process_that_fails_is_one_sentence_and_ends_the_others(
    deed: str, says: str, module: Path, tmp_path: Path
) -> None:
    module.write_text(FAILING.format(f"if os.environ['RANK'] == '1': {deed}"))
    file = policy_file(Gymnasium("mine:Failing-v0"), tmp_path / "policy")
    with pytest.raises(Fault, match=f"^{says}$"):
        surefoot.evaluate(file, episodes=2, ranks=2, trust=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_an_evaluation_is_ended(number: signal.Signals, module: Path, tmp_path: Path) -> None:
    """Found by the working directory alone, as `python -m` has it."""
    tell = "{os.environ['RANK']} {os.getpid()} plays\n"
    module.write_text(FAILING.format(f"open({str(tmp_path / 'fifo')!r}, 'w').write(f{tell!r})"))
    ear, file = Ear(tmp_path / "fifo"), policy_file(Gymnasium("mine:Failing-v0"), tmp_path / "policy")
    command = [sys.executable, "-m", "surefoot", "evaluate", str(file), "--episodes", "2", "--ranks", "2", "--trust"]
    with subprocess.Popen(command, cwd=module.parent, stderr=subprocess.PIPE) as process:
        try:
            ranks = set[int]()
            while len(ranks) < 2:
                ranks |= {pid for _, pid, _ in ear.lines(1)}
            process.send_signal(number)
            said = process.communicate(timeout=60)[1].splitlines()
            assert all(line.startswith(b"surefoot: evaluat") for line in said)  # signs of life
        finally:
            process.kill()
            os.close(ear.handle)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert gone_within(5, list(ranks))


def test_how_many_processes_share_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are cores, but one for an MLP or where only this process can make the environment."""
    here = Evaluation([0.0], [1], False, 0, 0.0)
    monkeypatch.setattr(evaluation_workers, "usable_cores", lambda: 3)
    monkeypatch.setattr(evaluation_workers, "evaluate", lambda *_, **__: here)
    monkeypatch.setattr(evaluation_workers, "evaluate_in_processes", lambda *how: [[[0.0], [1], 0]] * how[6])
    local = policy_file(describe(lambda: makers.Image()), tmp_path / "local", NatureCNN())
    image = policy_file(Gymnasium("makers:Image"), tmp_path / "image", NatureCNN())
    vector = policy_file(Gymnasium("CartPole-v1"), tmp_path / "vector")
    found = [evaluate_run(file, trust=True) for file in (local, image, vector)]
    found += [
        evaluate_run(image, 2, trust=True),
        evaluate_run(image, ranks=1, trust=True),
        evaluate_run(vector, ranks=5),
    ]
    assert [len(result.scores) for result in found] == [1, 3, 1, 2, 1, 5]
    with pytest.raises(UserError, match="in this process alone"):
        evaluate_run(local, ranks=2, trust=True)


@pytest.mark.parametrize("wrong", [{"ranks": -1}, {"episodes": 0}, {"seed": -1}, {"sticky": 1.0}, {"sticky": np.nan}])
def test_what_cannot_be_played_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} .*{next(iter(wrong.values()))}.*allowed"):
        surefoot.evaluate(tmp_path, **wrong)


# Sticky actions, and what is shown


@pytest.mark.long
def test_sticky_actions_are_the_runs_own_unless_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, played = policy_file(Pong(sticky=0.25), tmp_path / "policy", SmallCNN()), list[float]()

    def over(game: PongEnv, _: int, __: Any) -> tuple[float, bool, bool]:
        played.append(game.randomness.sticky)
        return 21.0, True, False

    monkeypatch.setattr(PongEnv, "step", over)
    command = ["evaluate", str(file), "--episodes", "1"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sticky"] == 0.25
    assert main([*command, "--sticky", "0"]) == 0
    assert capsys.readouterr().out.startswith("1 full episodes, actions sampled, seed 0, sticky 0\n")
    assert played == [0.25, 0.0]
    other = policy_file(Gymnasium("CartPole-v1"), tmp_path / "other")
    with pytest.raises(UserError, match="an Atari console's"):
        surefoot.evaluate(other, sticky=0.25)


def test_a_terminal_sees_how_many_games_were_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(policy_file(Gymnasium("CartPole-v1"), tmp_path / "policy")), "--episodes", "2"]
    assert main(command) == 0
    table, silence = capsys.readouterr()
    assert silence == ""  # no terminal
    assert [line[:20].strip() for line in table.splitlines()[1:]] == ["mean", "interquartile mean", "median", "length"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(command) == 0
    shown = capsys.readouterr().err.split("\r\x1b[2K")
    assert shown == ["", *(f"evaluating: {n} of 2 episodes" for n in range(3)), ""]
    assert main([*command, "--json"]) == 0
    assert capsys.readouterr().err == ""
