"""The old lesson's modules on today's ALE, and its notebooks, old and new, executed from the first cell to the last."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import gymnasium
import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from surefoot.commands.cli import main
from surefoot.envs.atari import Atari, Pong
from surefoot.errors import UserError
from surefoot.lesson import old_gym, parallelEnv, pong_utils
from surefoot.lesson.old_names import ProgressBar, of_today
from surefoot.lesson.pong_utils import LEFT, RIGHT, Policy, collect_trajectories

LESSON = Path(__file__).parent.parent / "docs" / "lesson"
OLD_ID = "PongDeterministic-v4"
Played = tuple[list, list, list, list]


@pytest.fixture(scope="module")
def played() -> tuple[Policy, Played]:
    """A new policy and six steps of three games."""
    torch.manual_seed(0)
    np.random.seed(0)
    policy = Policy()
    return policy, collect_trajectories(parallelEnv.parallelEnv(OLD_ID, n=3, seed=1), policy, tmax=6)


def test_the_old_id_is_the_game_it_was() -> None:
    """Frame by frame what ALE shows with a frame skip of 4 and no sticky actions."""
    import ale_py

    gymnasium.register_envs(ale_py)
    theirs = gymnasium.make("ALE/Pong-v5", frameskip=4, repeat_action_probability=0.0)
    ours, actions = old_gym.make(OLD_ID), np.random.default_rng(0).integers(6, size=90)
    assert ours.unwrapped.get_action_meanings() == theirs.unwrapped.get_action_meanings()
    theirs.reset(seed=0)
    ours.reset()
    rewards = []
    for action in [1, *actions]:
        (frame, reward, done, info), (their_frame, their_reward, *_) = ours.step(action), theirs.step(action)
        assert np.array_equal(frame, their_frame)
        assert (reward, done, info) == (their_reward, False, {})
        rewards.append(reward)
    assert sum(rewards) < 0
    theirs.close()


@pytest.mark.parametrize(
    ("env_id", "spec"),
    [
        ("Pong-v4", Pong(old_gym.PONG, (2, 4), 0.0, 0)),
        ("Pong-v0", Pong(old_gym.PONG, (2, 4), 0.25, 0)),
        ("PongNoFrameskip-v4", Pong(old_gym.PONG, (1,), 0.0, 0)),
        ("ALE/Pong-v5", Pong(old_gym.PONG, (4,), 0.25, 0)),
        ("SpaceInvadersDeterministic-v4", Atari("space_invaders", (4,), 0.0, 0)),
    ],
)
def test_other_old_ids(env_id: str, spec: Pong | Atari) -> None:
    assert old_gym.describe(env_id) == spec


@pytest.mark.long
def test_games_side_by_side() -> None:
    envs = parallelEnv(OLD_ID, n=2, seed=3)  # the module itself can be called
    assert isinstance(envs, parallelEnv.parallelEnv)
    assert len(envs.ps) == 2
    assert envs.reset().shape == (2, 210, 160, 3)
    for env in envs.ps:  # a game that is nearly over
        env.game.ale.setRAM(14, 20)
    rewards, over = np.zeros(2), np.zeros(2, bool)
    while not over.any():
        frames, reward, over, infos = envs.step(np.array([1, 1]))
        rewards += reward
        assert frames.dtype == np.uint8
        assert len(infos) == 2
    assert rewards.tolist() == [-1, -1] or rewards.tolist() == [1, 1]
    assert np.array_equal(frames, [env.game.render() for env in envs.ps])  # they have begun anew
    assert not envs.step([0, 0])[2].any()
    envs.close()


def test_what_the_policy_sees() -> None:
    frames = np.random.default_rng(1).integers(256, size=(2, 3, 210, 160, 3), dtype=np.uint8)
    single = pong_utils.preprocess_single(frames[0, 1])
    by_hand = np.mean(frames[0, 1, 34:-16:2, ::2].astype(float) - [144, 72, 17], axis=-1) / 255
    assert np.allclose(single, by_hand, atol=1e-12)
    batch = pong_utils.preprocess_batch([frames[0], frames[1]])
    assert batch.shape == (3, 2, 80, 80)
    assert batch.dtype == torch.float32
    assert np.allclose(batch[1, 0], by_hand, atol=1e-6)
    assert torch.equal(pong_utils.preprocess_batch(frames[:, 1]), batch[1:2])
    plain = pong_utils.preprocess_single(frames[0, 1], bkg_color=np.array([0, 0, 0]))
    assert np.allclose(plain, frames[0, 1, 34:-16:2, ::2].mean(-1) / 255)


def test_trajectories_have_the_lessons_shapes(played: tuple[Policy, Played]) -> None:
    policy, (probs, states, actions, rewards) = played
    assert [len(x) for x in played[1]] == [6, 6, 6, 6]
    assert states[0].shape == (3, 2, 80, 80)
    assert np.array(probs).shape == np.array(actions).shape == np.array(rewards).shape == (6, 3)
    assert set(np.unique(actions)) <= {RIGHT, LEFT}
    right = pong_utils.states_to_prob(policy, states)
    assert right.requires_grad
    taken = np.where(np.array(actions) == RIGHT, right.detach(), 1 - right.detach())
    assert np.allclose(taken, probs, atol=1e-6)
    np.random.seed(0)
    again = collect_trajectories(parallelEnv.parallelEnv(OLD_ID, n=3, seed=1), policy, tmax=6)
    assert all(np.array_equal(a, b) for a, b in zip(again[2], actions, strict=True))


def by_hand(policy: Policy, played: Played, epsilon: float, beta: float, discount: float = 0.9) -> float:
    """The objective as loops over numbers."""
    probs, states, actions, rewards = played
    right = pong_utils.states_to_prob(policy, states).tolist()
    total, (steps, n) = 0.0, np.shape(probs)
    for t in range(steps):
        future = [sum(discount ** (k - t) * rewards[k][i] for k in range(t, steps)) for i in range(n)]
        sigma = np.std(future)
        for i in range(n):
            advantage = (future[i] - np.mean(future)) / sigma if sigma > 1e-6 else 0.0
            new, old = right[t][i] if actions[t][i] == RIGHT else 1 - right[t][i], probs[t][i]
            clip = min(max(new / old, 1 - epsilon), 1 + epsilon)
            total += min(new / old * advantage, clip * advantage)
            total -= beta * (new * math.log(old) + (1 - new) * math.log(1 - old))
    return total / (steps * n)


@pytest.mark.long
def test_the_objectives_are_the_lessons(played: tuple[Policy, Played]) -> None:
    policy, (probs, states, actions, _) = played
    rewards = list(np.random.default_rng(2).integers(-1, 2, (6, 3)).astype(float))
    rewards[-1][:] = 1.0  # where all games agree
    other = [np.clip(p + np.random.default_rng(3).normal(0, 0.2, 3), 0.05, 0.95) for p in probs]
    given: Played = (other, states, actions, rewards)
    args = (policy, *given)
    plain = pong_utils.surrogate(*args, discount=0.9, beta=0.02)
    assert plain.item() == pytest.approx(by_hand(policy, given, math.inf, 0.02), abs=1e-5)
    clipped = pong_utils.clipped_surrogate(*args, 0.9, 0.1, 0.02)
    assert clipped.item() == pytest.approx(by_hand(policy, given, 0.1, 0.02), abs=1e-5)
    assert clipped.item() < plain.item() - 0.01
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)  # Adam takes seconds to import
    (-plain).backward()
    optimizer.step()
    assert pong_utils.surrogate(*args, discount=0.9, beta=0.02) > plain
    certain = pong_utils.clipped_surrogate(lambda x: torch.ones(len(x), 1), *given)  # log 0 for actions to the left
    assert certain.isfinite()


def wrong(call: Callable[[], object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        call()


def test_mistakes_are_sentences(played: tuple[Policy, Played], capsys: pytest.CaptureFixture[str]) -> None:
    policy, (probs, states, actions, rewards) = played
    envs = parallelEnv(OLD_ID, n=2)
    wrong(lambda: collect_trajectories(envs, lambda x: x.mean((1, 2, 3))[:, None] - 9), "is the sigmoid at its end")
    wrong(lambda: collect_trajectories(envs, lambda x: torch.full((len(x),), math.nan)), "lower the learning rate")
    wrong(lambda: collect_trajectories(envs, lambda x: torch.rand(len(x), 2)), r"gave \[2, 2\] for 2 images")
    wrong(lambda: collect_trajectories(envs, policy, tmax=0), "tmax is 0")
    wrong(lambda: envs.step([0, 0, 0]), "3 actions for 2 games")
    wrong(lambda: envs.step([0, 6]), "no action 6: choose one of 0 NOOP, 1 FIRE")
    wrong(lambda: parallelEnv("CartPole-v1"), "no Atari id: give one such as PongDeterministic-v4")
    wrong(lambda: parallelEnv("PongDetermined-v4"), "there is no Atari game")
    wrong(lambda: parallelEnv(OLD_ID, n=0), "n is 0")
    wrong(lambda: pong_utils.preprocess_single(np.zeros((80, 80))), "the shape")
    wrong(lambda: pong_utils.surrogate(policy, probs[1:], states, actions, rewards), r"\[5, 3\], \[6, 3\], \[6, 3\]")
    wrong(lambda: pong_utils.animate_frames([]), "in a notebook")
    parallelEnv(OLD_ID, n=1)
    assert "rewards normalised over the games are all 0" in capsys.readouterr().err


def test_an_old_cell_as_it_is_run_today() -> None:
    old = (
        "!pip install JSAnimation\nimport x\n%matplotlib notebook\n !pip install  progressbar # bar\n!pip install numpy"
    )
    assert of_today(old).split("\n") == [
        "# not needed: !pip install JSAnimation",
        "import x",
        "%matplotlib inline",
        "# not needed: !pip install  progressbar # bar",
        "!pip install numpy",
    ]


def test_progress_is_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(1 for _ in ProgressBar()(range(40))) == 40
    assert capsys.readouterr().out.split("\n")[:-1] == [f"{10 * i} %" for i in range(1, 11)]


OLD_NOTEBOOK = [
    "!pip install progressbar\nimport progressbar as pb\nimport gym, pong_utils\nfrom parallelEnv import parallelEnv",
    "env = gym.make('PongDeterministic-v4')\nprint(env.unwrapped.get_action_meanings())\nenv.reset()\n"
    "frame, _, _, _ = env.step(1)\nassert pong_utils.preprocess_single(frame).shape == (80, 80)",
    """import torch
class Policy(torch.nn.Module):
    def __init__(self):
        super(Policy, self).__init__()
        self.fc = torch.nn.Linear(2 * 80 * 80, 1)
    def forward(self, x):
        return torch.sigmoid(self.fc(x.view(-1, 2 * 80 * 80)))
policy = Policy().to(pong_utils.device)
before = policy.fc.weight.detach().clone()
optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)""",
    """envs, episode = parallelEnv('PongDeterministic-v4', n=4, seed=12345), 2
timer = pb.ProgressBar(widgets=['loop: ', pb.Percentage(), ' ', pb.Bar(), ' ', pb.ETA()], maxval=episode).start()
for e in range(episode):
    old_probs, states, actions, rewards = pong_utils.collect_trajectories(envs, policy, tmax=5)
    L = -pong_utils.clipped_surrogate(policy, old_probs, states, actions, rewards, epsilon=0.1, beta=0.01)
    optimizer.zero_grad(); L.backward(); optimizer.step(); del L
    timer.update(e + 1)
timer.finish()
assert not torch.equal(before, policy.fc.weight)""",
    "pong_utils.play(env, policy, time=3, preprocess=pong_utils.preprocess_single)",
    "1 / 0",
]


@pytest.mark.long
def test_notebooks_run_from_the_first_cell_to_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours, and one as learners have it, which ends with an error; in one kernel, with its names removed in between."""
    cells = []
    for name in ("reinforce", "ppo"):
        book = nbformat.read(LESSON / f"{name}.ipynb", as_version=4)
        assert not any(cell.get("outputs") for cell in book.cells)
        cells += [*book.cells, new_code_cell("%reset -f")]
    cells += [new_code_cell(source) for source in OLD_NOTEBOOK]
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"
    path = tmp_path / "all of them.ipynb"
    kernel = {"kernelspec": {"name": "drlnd", "display_name": "drlnd"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path, version=4)
    assert main(["notebook", str(path), "--set", "episodes=2", "tmax=3", "n=2", "film=2"]) == 1
    assert "failed: ZeroDivisionError: division by zero; what was executed is in" in capsys.readouterr().err
    done = nbformat.read(tmp_path / "all of them-executed.ipynb", as_version=4).cells
    code = [cell for cell in done if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(2, len(code) + 2))
    assert sum(cell.source.startswith("episodes = 2\ntmax = 3\nn = 2") for cell in code) == 2
    outputs = [output for cell in code for output in cell.outputs]
    assert [o.ename for o in outputs if o.output_type == "error"] == ["ZeroDivisionError"]
    films = [o.data["text/html"] for o in outputs if "video/mp4" in str(o.get("data", {}).get("text/html"))]
    assert len(films) == 3
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    text = "".join(o.get("text", "") for o in outputs)
    assert "334897 parameters" in text
    assert "RIGHTFIRE" in text
    assert "100 %" in text


def test_mistakes_of_the_notebook_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = str(LESSON / "ppo.ipynb")
    (tmp_path / "no.ipynb").write_text("{}")
    for args, why in (
        ([str(tmp_path / "none.ipynb")], "cannot be read as a notebook"),
        ([str(tmp_path / "no.ipynb")], "cannot be read as a notebook"),
        ([book, "--set", "episodes"], "'episodes' is not NAME=VALUE"),
        ([book, "--set", "episodes=exit()"], "is not NAME=VALUE"),
    ):
        assert main(["notebook", *args]) == 2
        assert why in capsys.readouterr().err
