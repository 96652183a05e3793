"""A Stable-Baselines3 script runs on surefoot, and its policies are read without their pickles."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import makers
import surefoot
from surefoot.connect.sb3 import PPO, evaluate_policy, make_vec_env
from surefoot.connect.sb3_zip import load_policy
from surefoot.envs.spaces import own_row
from surefoot.errors import UserError

DATA = Path(__file__).parent / "data" / "sb3"
TINY: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 3}


@pytest.mark.parametrize("name", ["cartpole", "pendulum", "images"])
def test_its_policies_are_read(name: str) -> None:
    """The same actions, values and distributions on an environment's own observations."""
    task: Any = {"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1", "images": makers.Image}[name]
    policy = load_policy(DATA / f"{name}.zip", task)
    env = gymnasium.make(task) if isinstance(task, str) else task()
    obs = env.reset(seed=5)[0]
    for step, expected in enumerate(json.loads((DATA / "expected.json").read_text())[name]):
        assert policy.spaces is not None
        with torch.no_grad():
            dist, value, _ = policy(torch.from_numpy(own_row(*policy.spaces, obs, None)[None]))
        assert float(value) == pytest.approx(expected["value"], abs=1e-6)
        assert np.allclose(policy.act(obs, greedy=True), expected["action"], atol=1e-6)
        if name == "pendulum":
            mean, std = expected["params"]
            assert dist.params[0].tolist() == pytest.approx([mean[0] / 2, np.log(std[0] / 2)], abs=1e-6)
        else:
            probabilities = torch.tensor(expected["params"]).softmax(0).tolist()
            assert dist.probabilities()[0].tolist() == pytest.approx(probabilities, abs=1e-6)
        env.action_space.seed(step)
        obs = env.step(env.action_space.sample())[0]


@pytest.mark.parametrize(
    ("name", "task", "says"),
    [
        ("relu", "CartPole-v1", "has ReLU in its layers"),
        ("uneven", "CartPole-v1", r"layers \[4\] for its policy and \[6\] for its critic"),
        ("cartpole", "Pendulum-v1", "does not fit the environment's spaces"),
        ("pendulum", "CartPole-v1", "does not fit the environment's spaces"),
    ],
)
def test_what_cannot_be_read_is_said(name: str, task: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_policy(DATA / f"{name}.zip", task)


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    """Something else than tensors in policy.pth, that would leave a mark."""

    class Mark:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "mark",))

    torch.save({"action_net.weight": Mark()}, data := io.BytesIO(), pickle_module=pickle)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data", "{}")
        archive.writestr("policy.pth", data.getvalue())
    with pytest.raises(UserError, match="has more in it than tensors, which is not read"):
        load_policy(tmp_path / "a.zip", "CartPole-v1")
    assert not (tmp_path / "mark").exists()
    (tmp_path / "b.zip").write_text("no zip")
    with pytest.raises(UserError, match="is no zip that Stable-Baselines3 has saved"):
        load_policy(tmp_path / "b.zip", "CartPole-v1")


def test_a_script_runs_as_it_is(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", n_envs=2)
    model = PPO("MlpPolicy", env, tensorboard_log=str(tmp_path), policy_kwargs={"net_arch": [8]}, ent_coef=0.01, **TINY)
    model.learn(100)
    assert model.num_timesteps == 128
    assert model.run is not None
    cfg = model.run.config
    assert (cfg.num_envs, cfg.num_steps, cfg.minibatch_size, cfg.num_epochs) == (2, (32,), 32, 2)
    assert (cfg.network.hidden, cfg.learning_rate.initial, cfg.entropy.coef, cfg.seed) == ((8,), 3e-4, 0.01, 3)
    model.learn(64)
    assert (model.num_timesteps, model.run.steps) == (192, 192)
    obs = gymnasium.make("CartPole-v1").reset(seed=1)[0]
    action, state = model.predict(obs, deterministic=True)
    actions, _ = model.predict(np.stack((obs, obs)), deterministic=True)
    assert (state, actions.tolist()) == (None, [action, action])
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model")
    assert again.predict(obs, deterministic=True)[0] == action
    mean, std = evaluate_policy(again, "CartPole-v1", n_eval_episodes=3)
    assert mean > 5
    assert std >= 0
    shutil.copyfile(DATA / "cartpole.zip", tmp_path / "old.zip")
    old = PPO.load(tmp_path / "old", env="CartPole-v1")
    assert old.predict(obs, deterministic=True)[0] in (0, 1)
    with pytest.raises(UserError, match="give env="):
        PPO.load(tmp_path / "old")


def test_arguments_mean_what_they_mean_there() -> None:
    schedules = {"learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.1 + 0.1 * left}
    model = PPO("MlpPolicy", "Pendulum-v1", target_kl=0.02, normalize_advantage=False, **schedules)
    chosen = surefoot.configure("Pendulum-v1", **model.settings)
    assert (type(chosen.learning_rate).__name__, chosen.learning_rate.initial) == ("LinearRate", 1e-3)
    assert (chosen.objective.clip_range, chosen.objective.end_factor) == pytest.approx((0.2, 0.5))
    assert chosen.target_kl == pytest.approx(0.03)
    assert type(chosen.normalize).__name__ == "Unnormalized"
    assert surefoot.configure("MountainCar-v0", **model.settings).noise_color == 0  # which has no preset
    assert chosen.network.std == 0.5  # a standard deviation of 1 where actions go from -2 to 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"use_sde": True}, "use_sde=True has nothing here"),
        ({"n_stepz": 3}, "n_stepz=3 has nothing here"),
        ({"learning_rate": lambda left: left**2}, "schedule is not linear"),
        ({"policy_kwargs": {"activation_fn": torch.nn.ReLU}}, "activation_fn=ReLU has nothing here"),
        ({"policy_kwargs": {"net_arch": {"pi": [3], "vf": [4]}}}, "pi and vf differ"),
        ({"policy": "MlpLstmPolicy"}, "there is no 'MlpLstmPolicy' here"),
    ],
)
def test_what_has_nothing_here_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PPO(**{"policy": "MlpPolicy", "env": "CartPole-v1"} | given)
