"""Tasks as users have them: ids, functions, objects, presets by id; and one sentence for each that cannot be had."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest
import torch

import makers
import surefoot
import worlds
from helpers import TINY, first_batch
from surefoot.algorithm.advantages import OverMinibatch
from surefoot.algorithm.objectives import ClippedSurrogate, clipped_squared_error, squared_error
from surefoot.algorithm.rewards import ScaledReward
from surefoot.algorithm.schedules import FixedRate
from surefoot.algorithm.state import initial
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.errors import Fault, UserError, note_once
from surefoot.models.networks import MLP, NatureCNN
from surefoot.parallel.ranks import Alone
from surefoot.presets import PRESETS, TUNED, find
from surefoot.runs.metrics import read
from surefoot.runs.start import start


@pytest.mark.parametrize("cfg", TUNED, ids=lambda cfg: cfg.task)
def test_every_tuned_task_trains(cfg: Config, tmp_path: Path) -> None:
    try:
        gymnasium.make(cfg.env.id).close()
    except gymnasium.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    assert find(cfg.task) == cfg == PRESETS[cfg.task]
    quick = TINY | {"eval_episodes": 0}  # whole games may last thousands of steps
    assert surefoot.train(replace(cfg, **quick), run_dir=tmp_path / "a", ranks=1, quiet=True).steps == 48


def test_other_tasks_get_settings_by_their_spaces() -> None:
    vectors, pictures = find("MountainCarContinuous-v0"), find("makers:Image")
    assert isinstance(vectors.network, MLP)
    assert vectors.network.running
    assert isinstance(pictures.network, NatureCNN)
    assert isinstance(pictures.reward, ScaledReward)
    assert vectors.task == vectors.env.id == "MountainCarContinuous-v0"
    assert find("worlds:Catch-v0").env == Gymnasium("worlds:Catch-v0")


def test_pictures_of_any_environment_are_learned_from(tmp_path: Path) -> None:
    run = surefoot.train("makers:Image", run_dir=tmp_path / "a", ranks=1, quiet=True, **TINY | {"eval_episodes": 0})
    assert surefoot.load_policy(run.path)[0](torch.zeros(1, 48, 40, 3, dtype=torch.uint8))[1].shape == (1,)


def test_a_function_that_can_be_imported_is_a_name(tmp_path: Path) -> None:
    cfg = find(makers.make_catch)
    assert cfg.env == Gymnasium("makers:make_catch") == find("makers:make_catch").env
    run = surefoot.train(makers.make_target, run_dir=tmp_path / "a", ranks=1, quiet=True, **TINY)
    assert len(surefoot.evaluate(run.path, episodes=2).scores) == 2


def test_other_functions_and_objects_are_played_in_this_process(tmp_path: Path) -> None:
    for number, task in enumerate((lambda: makers.Catch(), makers.Target(), gymnasium.make("CartPole-v1"))):
        run = surefoot.train(task, run_dir=tmp_path / str(number), quiet=True, **TINY)
        assert run.steps == 48
        assert run.evaluation is not None
        with pytest.raises(UserError, match="in this process alone"):
            surefoot.train(task, run_dir=tmp_path / "no", ranks=2, quiet=True, **TINY)
    text = (tmp_path / "0" / "config.json").read_text()
    from surefoot.envs.gym import LOCAL_MAKERS

    name = json.loads(text)["config"]["env"]["id"]
    LOCAL_MAKERS.pop(name)
    with pytest.raises(UserError, match="a function of another program"):
        surefoot.evaluate(tmp_path / "0")
    for env in ("makers:Catch", makers.make_catch, makers.Catch()):  # what stands in for it
        assert len(surefoot.evaluate(tmp_path / "0", episodes=2, env=env).scores) == 2
    with pytest.raises(UserError, match="does not fit"):
        surefoot.evaluate(tmp_path / "0", env="CartPole-v1")


def test_an_object_is_copied_for_every_game() -> None:
    env = makers.Target()
    state = initial(find(env, **TINY), Alone())
    games = [game.env for game in state.envs.envs]
    assert len({id(game) for game in (*games, env)}) == 3


def test_an_object_is_played_as_it_is_now() -> None:
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.theta_threshold_radians = 1e-4  # falls at once
    game = Gymnasium.make(find(env).env)
    game.reset(1, game.obs)
    assert game.step(0, game.obs)[1]
    with pytest.raises(UserError, match=r"can neither be copied nor made again .*: give a function that makes it"):
        find(makers.Copyless(gymnasium.make("CartPole-v1")))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["where=reset"], "no action_mask after some steps: there every action is allowed"),
        (["where=step"], "an action_mask after some steps but not after its first reset: not used"),
        (["actions=2"], "its action mask has 3 numbers where there are 6 alternatives"),
        (["picture=True"], ""),
        ([], ""),
    ],
)
def test_masks_are_obeyed_or_refused(
    more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [
        "--num-envs",
        "2",
        "--num-steps",
        "8",
        "--minibatch-size",
        "8",
        "--total-steps",
        "48",
        "--eval-episodes",
        "1",
    ]
    run = ["train", "makers:Masked", "--run-dir", str(tmp_path / "a"), "--ranks", "1", "--quiet", *tiny]
    code = main([*run, "--env.kwargs", "size=4", *more])
    assert re.search(says, capsys.readouterr().err)
    assert code == (1 if "alternatives" in says else 0)
    if not says:
        network = json.loads((tmp_path / "a/config.json").read_text())["config"]["network"]["type"]
        assert network == ("NatureCNN" if more else "MLP")


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("Breakout-v5", "did you mean .*ALE/Breakout-v5"),
        ("beam_rider", "did you mean .*ALE/BeamRider-v5"),
        ("Breakout-v4", r"shows raw screens: choose ALE/Breakout-v5 \(sticky actions\) or BreakoutNoFrameskip-v4"),
        ("Humanoids", "did you mean Humanoid"),
        ("CartPoel-v1", "did you mean CartPole-v1"),
        ("HalfCheeta-v5", "did you mean HalfCheetah-v5"),
        (
            "no_such_module:Env-v0",
            "missing: pip install the package of 'no_such_module', or correct the name",
        ),
        (
            "no_such_module:make",
            "missing: pip install the package of 'no_such_module', or correct the name",
        ),
        ("makers:no_such_function", "no environment 'makers:no_such_function'"),
        ("makers:Stranger", "Stranger, which is no gymnasium.Env"),
        ("makers:NoSeed", "has a reset that takes no seed: def reset"),
        ("makers:NoInfo", "has a reset that does not give observation and info: def reset"),
    ],
)
def test_a_task_that_cannot_be_had_is_one_sentence(
    task: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", task, "--run-dir", str(tmp_path / "a")]) == 2
    text = capsys.readouterr().err
    assert text.startswith("surefoot: ")
    assert text.count("\n") == 1
    with pytest.raises(UserError, match=says):
        find(task)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("makers:Broken", "failed: RuntimeError: no licence"),
        (
            "makers:FourTuple",
            "failed: ValueError: its step gives 4 values: it must give observation, reward, terminated",
        ),
        ("makers:Faulty", "cannot be made: AttributeError: .*no_such_field"),
    ],
)
def test_an_environment_that_fails_on_trial_is_a_fault(
    name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", name, "--run-dir", str(tmp_path / "a"), "--quiet"]) == 1
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("id", "missing", "extra"), [("HalfCheetah-v5", "mujoco", "mujoco"), ("LunarLander-v3", "Box2D", "box2d")]
)
def test_a_missing_package_is_named_with_its_extra(
    id: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith(("gymnasium.envs.mujoco", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"needs a package that is missing: pip install 'surefoot\[{extra}\]'"):
        Gymnasium(id).make()


def test_mujoco_warns_once_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    Gymnasium("HalfCheetah-v5").make().close()
    note_once.cache_clear()
    capfd.readouterr()
    for _ in range(3):
        mujoco.MjModel.from_xml_string("<mujoco><compiler settotalmass='1'/><worldbody/></mujoco>")
    assert re.fullmatch("surefoot: MuJoCo: .*settotalmass.*\n", capfd.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_arguments_of_an_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = Gymnasium("FrozenLake-v1", ("map_name=8x8", "is_slippery=False"))
    game = env.make()
    assert game.observation_space.n == 64
    assert game.env.unwrapped.P[0][1] == [(1.0, 8, 0, False)]  # down, without slipping
    call = [
        "--num-envs",
        "2",
        "--num-steps",
        "16",
        "--minibatch-size",
        "32",
        "--total-steps",
        "32",
        "--eval-episodes",
        "2",
    ]
    run = ["train", "FrozenLake-v1", "--run-dir", str(tmp_path / "a"), "--quiet", *call]
    assert main([*run, "--env.kwargs", "map_name=8x8", "is_slippery=False"]) == 0
    assert json.loads((tmp_path / "a/config.json").read_text())["config"]["env"]["kwargs"] == list(env.kwargs)
    assert main(["evaluate", str(tmp_path / "a"), "--episodes", "2"]) == 0
    assert find("HalfCheetah-v5", kwargs=("reset_noise_scale=0.0",)).env.kwargs == ("reset_noise_scale=0.0",)
    assert find("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}).env.make().observation_space.n == 64
    for task, kwargs, says in (
        ("FrozenLake-v1", {"desc": object()}, "numbers and strings"),
        ("pong", {"a": 1}, "no kwargs"),
    ):
        with pytest.raises(UserError, match=says):
            find(task, kwargs)
    capsys.readouterr()
    for wrong, says in (("slippery", "NAME=VALUE"), ("slip=1", "cannot be made with slip=1: .*'slip'")):
        assert main([*run[:3], str(tmp_path / "b"), *call, "--env.kwargs", wrong]) == 2
        assert re.fullmatch(f"surefoot: .*{says}.*\n", capsys.readouterr().err)


# PPO as its users know it


def test_the_clipped_value_loss_by_hand() -> None:
    old, target = torch.tensor([1.0]), torch.tensor([2.0])
    for value, want in ((1.1, 0.81), (1.2, 0.64), (1.5, 0.64), (0.5, 2.25), (3.0, 1.0)):
        # 1.5 would be nearer, but 1 + 0.2 is what counts: 0.8^2; at 3 and 0.5 the plain loss is larger
        assert float(clipped_squared_error(torch.tensor([value]), old, target, 0.2)) == pytest.approx(want)
    draw = torch.Generator().manual_seed(0)
    v, o, t = torch.randn(3, 100, generator=draw)
    assert (clipped_squared_error(v, o, t, 0.3) >= squared_error(v, t)).all()
    torch.testing.assert_close(clipped_squared_error(v, o, t, 1e3), squared_error(v, t))


def test_a_critic_that_has_moved_far_enough_is_left_alone(small: Config) -> None:
    from surefoot.algorithm.update import update

    cfg = replace(small, value_clip=0.1, objective=ClippedSurrogate(0.2))
    state, _, batch = first_batch(cfg)
    batch.returns = batch.value_old + 10
    batch.value_old = batch.value_old - 5  # it has moved 5 towards the target: more than 0.1
    batch.advantage = 0 * batch.advantage
    update(state, batch, cfg, Alone())
    assert float(state.gradient.abs().max()) == 0
    update(state, batch, replace(cfg, value_clip=20.0), Alone())
    assert float(state.gradient.abs().max()) > 0


def test_the_clip_range_falls_in_a_straight_line() -> None:
    falling = ClippedSurrogate(0.2, end_factor=0.0)
    assert [falling.at(7, p).clip_range for p in (0.0, 0.25, 1.0, 1.5)] == pytest.approx([0.2, 0.15, 0.0, 0.0])


def test_a_large_divergence_ends_the_passes(small: Config, tmp_path: Path) -> None:
    class Many:
        calls = 0

    from surefoot.algorithm import update as learning

    plain, cfg = learning.update, replace(small, learning_rate=FixedRate(0.05))

    def counting(*args):  # type: ignore[no-untyped-def]
        Many.calls += 1
        return plain(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "update", counting)
        surefoot.train(cfg, run_dir=tmp_path / "a", ranks=1, quiet=True)
        everything, Many.calls = Many.calls, 0
        surefoot.train(replace(cfg, target_kl=1e-4), run_dir=tmp_path / "b", ranks=1, quiet=True)
    assert everything == 6 * 2 * 4  # iterations, epochs, minibatches
    assert Many.calls == 6 * 2  # the first update of a rollout finds none, the second one does


def test_each_minibatch_is_normalised_for_itself() -> None:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    found = OverMinibatch().within(weight, lambda x: x)
    assert float(found.mean()) == pytest.approx(0, abs=1e-9)
    assert float(found.square().mean()) == pytest.approx(1, abs=1e-6)
    halves = torch.cat([OverMinibatch().within(half, lambda x: x) for half in weight.split(32)])
    assert not torch.allclose(halves, found)
    assert OverMinibatch().within(torch.full((4,), 0.3), lambda x: x).tolist() == [0, 0, 0, 0]
    assert torch.equal(OverMinibatch()(weight), weight)


def test_normalised_by_two_ranks_is_normalised_by_one() -> None:
    """Means over the ranks of equal shares are the means of all."""
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = OverMinibatch().within(weight, lambda x: x)
    means = iter((weight.mean(), (weight - weight.mean()).square().mean()))
    assert torch.allclose(OverMinibatch().within(weight[:32], lambda _: next(means)), whole[:32])


@pytest.mark.long
def test_several_seeds_are_trained_and_summed_up(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(small, eval_episodes=3, total_steps=8 * 16 * 12, seed=4)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no file"):
        surefoot.train_seeds(cfg, 2, source=tmp_path / "none", ranks=1)
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().err
    monkeypatch.setattr(worlds.Faulty, "steps", -2000)  # it fails in the second seed
    with pytest.raises(Fault):
        surefoot.train_seeds(replace(cfg, env=Gymnasium("worlds:Faulty-raises-v0")), 2, run_dir=tmp_path / "b", ranks=1)
    assert (tmp_path / "b/seed-4/evaluation.json").exists()
    assert f"all seeds go on with the same command and --run-dir {tmp_path / 'b'}\n" in capsys.readouterr().err
    runs = surefoot.train_seeds(cfg, 2, run_dir=tmp_path / "a", ranks=1)
    assert [run.config.seed for run in runs] == [4, 5]
    facts = json.loads((tmp_path / "a" / "seeds.json").read_text())
    assert facts["seeds"] == [4, 5]
    means = [run.evaluation.mean for run in runs if run.evaluation]
    assert facts["evaluation"] == means
    assert facts["evaluation_mean"] == pytest.approx(sum(means) / 2)
    best = [max(row["return_mean"] for row in read(run.path) if row["return_window"] == 100) for run in runs]
    assert facts["best_training"] == best
    assert f"mean {sum(means) / 2:.2f}" in capsys.readouterr().out
    assert main(["train", "cartpole", "--seeds", "0"]) == 2


def test_a_goal_ends_a_run(tmp_path: Path) -> None:
    where, finished = start(find("CartPole-v1", stop_at=15.0, eval_episodes=0), tmp_path / "a", quiet=True, ranks=1)
    rows = read(where)
    assert finished
    assert rows[-1]["return_mean"] >= 15
    assert rows[-1]["return_window"] == 100
    assert rows[-1]["step"] < 20_000
