"""A Stable-Baselines3 script as it is, trained by surefoot: `from surefoot.connect.sb3 import PPO, evaluate_policy`.

Constructor arguments have Stable-Baselines3's names and defaults; one that surefoot has nothing for is refused by name.
`load_policy` reads the policies that Stable-Baselines3's PPO has saved (connect/sb3_zip.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.algorithm.advantages import GAE, OverMinibatch, Unnormalized
from surefoot.algorithm.objectives import ClippedSurrogate, Entropy
from surefoot.algorithm.rewards import RawReward
from surefoot.algorithm.schedules import FixedRate, LinearRate
from surefoot.errors import UserError, note
from surefoot.models.networks import MLP, NatureCNN
from surefoot.models.optimizers import Adam

if TYPE_CHECKING:
    import gymnasium

    from surefoot.connect.run import Run

    Env = str | gymnasium.Env[Any, Any] | Callable[..., gymnasium.Env[Any, Any]]

OTHERWISE: Mapping[str, tuple[tuple[object, ...], str]] = {  # what may be given, and the cure
    "use_sde": ((False,), "exploration noise is drawn at every step"),
    "sde_sample_freq": ((-1,), "exploration noise is drawn at every step"),
    "rollout_buffer_class": ((None,), "surefoot.loop is the loop by hand"),
    "rollout_buffer_kwargs": ((None,), "surefoot.loop is the loop by hand"),
    "stats_window_size": ((100,), "scores are means of the last 100 episodes"),
    "_init_setup_model": ((True,), "leave it out"),
    "verbose": ((0, 1, 2), "0, 1 and 2 are allowed"),
    "device": (("auto", "cpu", "cuda"), "name auto, cpu or cuda"),
}


class Envs:
    """So many environments of one kind: what `make_vec_env` gives."""

    def __init__(self, env: Env, count: int, seed: int | None) -> None:
        self.env, self.num_envs, self.seed = env, count, seed


def make_vec_env(env_id: Env, n_envs: int = 1, seed: int | None = None, **others: Any) -> Envs:
    """`n_envs` environments for `PPO`. There is nothing to choose between dummy and subprocess: ranks do both."""
    wrong = [name for name, value in others.items() if value]
    if wrong:
        raise UserError(f"make_vec_env's {wrong[0]} has nothing here: give a function that makes the whole environment")
    return Envs(env_id, n_envs, seed)


def endpoints(name: str, value: float | Callable[[float], float]) -> tuple[float, float]:
    """A number, or a schedule of the progress that remains, at its start and end. Raises UserError for a curved one."""
    if not callable(value):
        return float(value), float(value)
    first, middle, last = (float(value(x)) for x in (1.0, 0.5, 0.0))
    if not math.isclose(middle, (first + last) / 2, rel_tol=1e-6, abs_tol=1e-12):
        raise UserError(f"{name}'s schedule is not linear: a constant or a linear one can be taken")
    return first, last


class PPO:
    """Stable-Baselines3's PPO in its words; `run` is surefoot's run after `learn`.

    Equal settings, so not what surefoot would choose by itself (`surefoot.train(env)`). Raises UserError for arguments
    that have nothing here.
    """

    def __init__(
        self,
        policy: str,
        env: Env | Envs,
        learning_rate: float | Callable[[float], float] = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Callable[[float], float] = 0.2,
        clip_range_vf: float | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        target_kl: float | None = None,
        tensorboard_log: str | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        **others: Any,
    ) -> None:
        for name, value in others.items():
            allowed, cure = OTHERWISE.get(name, ((), "surefoot train --help lists what there is"))
            if not any(value is each or value == each for each in allowed):
                raise UserError(f"PPO's {name}={value!r} has nothing here: {cure}")
        envs = env if isinstance(env, Envs) else Envs(env, 1, None)
        if hasattr(envs.env, "env_method"):
            raise UserError("this is a VecEnv of Stable-Baselines3: use make_vec_env of surefoot.connect.sb3")
        self.env, self.device = envs.env, str(others.get("device", "cpu")).replace("auto", "cpu")
        self.folder, self.quiet = tensorboard_log, not others.get("verbose", 0)
        rate, clip = endpoints("learning_rate", learning_rate), endpoints("clip_range", clip_range)
        if rate[1] not in (0.0, rate[0]):
            raise UserError("learning_rate falls to 0 or stays, as surefoot's learning-rate:linear-rate does")
        self.settings: dict[str, Any] = {
            "network": self.network(policy, dict(policy_kwargs or {})),
            "num_envs": envs.num_envs,
            "num_steps": (n_steps,),
            "minibatch_size": batch_size,
            "num_epochs": n_epochs,
            "advantage": GAE(gamma, gae_lambda),
            "normalize": OverMinibatch() if normalize_advantage else Unnormalized(),
            "objective": ClippedSurrogate(clip[0], end_factor=clip[1] / clip[0]),
            "value_clip": math.inf if clip_range_vf is None else clip_range_vf,
            "entropy": Entropy(ent_coef),
            "value_coef": vf_coef,
            "max_grad_norm": max_grad_norm,
            "target_kl": math.inf if target_kl is None else 1.5 * target_kl,
            "learning_rate": FixedRate(rate[0]) if rate[1] else LinearRate(rate[0]),
            "optimizer": Adam(1e-5),
            "reward": RawReward(),
            "noise_color": 0.0,
            "recompute": False,
            "ema_decay": 0.0,
            "eval_episodes": 0,
            "bf16": False,
            "device": self.device,
            "seed": next((s for s in (seed, envs.seed) if s is not None), 1),
        }
        self.num_timesteps = 0
        self._policy: Any = None
        self.run: Run | None = None

    def network(self, policy: str, kwargs: dict[str, Any]) -> MLP | NatureCNN:
        """The description of the network that `policy` and `policy_kwargs` ask for."""
        sizes, activation = kwargs.pop("net_arch", None), kwargs.pop("activation_fn", None)
        if isinstance(sizes, dict):
            if list(sizes.get("pi", ())) != list(sizes.get("vf", ())):
                raise UserError("net_arch's pi and vf differ: surefoot's policy and critic have layers of one size")
            sizes = sizes["pi"]
        if kwargs or (activation is not None and activation.__name__ != "Tanh"):
            name = next(iter(kwargs), f"activation_fn={getattr(activation, '__name__', activation)}")
            raise UserError(f"policy_kwargs' {name} has nothing here: net_arch with Tanh is what there is")
        if policy not in ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"):
            raise UserError(f"there is no {policy!r} here: MlpPolicy, CnnPolicy and MultiInputPolicy are known")
        if policy == "CnnPolicy":
            return NatureCNN()
        import surefoot

        chosen = surefoot.configure(self.env).network
        if policy == "MultiInputPolicy" and isinstance(chosen, NatureCNN):
            return chosen
        return MLP(tuple(sizes) if sizes is not None else (64, 64), std=self.first_std())

    def first_std(self) -> float:
        """A standard deviation of 1 in the environment's units, in surefoot's: half the range of an action is 1."""
        from gymnasium.spaces import Box

        import surefoot
        from surefoot.envs.actions import box_scale, leaves

        env = surefoot.configure(self.env).env.make()
        try:
            boxes = [leaf for leaf in leaves(env.action_space) if isinstance(leaf, Box)]
            half = [float(x) for box in boxes for x in box_scale(box)[1]]
        finally:
            env.close()
        if len({*half}) > 1:
            note("the actions' ranges differ: one standard deviation for all of them, that of the mean range, is taken")
        return float(len(half) / sum(half)) if half else 1.0

    def learn(
        self,
        total_timesteps: int,
        callback: None = None,
        log_interval: int = 1,
        tb_log_name: str = "PPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> PPO:
        """Train for so many steps of all environments (whole rollouts), or go on for so many."""
        import surefoot

        if callback is not None:
            raise UserError("callbacks of Stable-Baselines3 have nothing here: surefoot.train takes stop= and metrics=")
        rollout = self.settings["num_envs"] * self.settings["num_steps"][0]
        goal = self.num_timesteps + math.ceil(total_timesteps / rollout) * rollout
        quiet = self.quiet and not progress_bar
        if self.run is None:
            folder = Path(self.folder, tb_log_name) if self.folder else None
            fields = self.settings | {"total_steps": goal}
            self.run = surefoot.train(self.env, run_dir=folder, quiet=quiet, ranks=1, **fields)
        else:
            self.run = surefoot.resume(self.run.directory, quiet=quiet, total_steps=goal)
        self.num_timesteps, self._policy = self.run.steps, self.run.policy
        return self

    @property
    def policy(self) -> Any:
        """surefoot's policy. Raises UserError before there is one."""
        if self._policy is None:
            raise UserError("there is no policy yet: call learn() or load() first")
        return self._policy

    def predict(
        self, observation: Any, state: None = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, None]:
        """The action for an observation, or the actions for several that are stacked in an array; and None."""
        import numpy as np

        shape = getattr(self.policy.spaces[0], "shape", None)
        if shape is not None and np.shape(observation)[1:] == shape and np.shape(observation) != shape:
            return np.stack([self.policy.act(row, greedy=deterministic) for row in observation]), None
        return self.policy.act(observation, greedy=deterministic), None

    def save(self, path: Path | str) -> None:
        """Write the policy, as a file of surefoot's (safetensors): `load`, `surefoot evaluate FILE`."""
        from surefoot.runs.files import read_named, replace_file

        if self.run is None:
            raise UserError("there is nothing to save: call learn() first")
        replace_file(Path(path).with_suffix(".safetensors"), read_named(self.run.directory / "policy.safetensors"))

    @classmethod
    def load(cls, path: Path | str, env: Env | None = None, **_: Any) -> PPO:
        """A model that predicts, from what `save` wrote, or from a zip of Stable-Baselines3's (then with `env`)."""
        import surefoot

        model = cls.__new__(cls)
        file, old = Path(path).with_suffix(".safetensors"), Path(path).with_suffix(".zip")
        model.run, model.num_timesteps, model.env = None, 0, env  # type: ignore[assignment]
        if file.exists() or not old.exists():
            model._policy = surefoot.load_policy(file, env=env)[0]
            return model
        if env is None:
            raise UserError(
                f"'{old}' is Stable-Baselines3's: give env=, since its spaces are pickles, which are not read"
            )
        from surefoot.connect.sb3_zip import load_policy

        model._policy = load_policy(old, env)
        return model


def evaluate_policy(
    model: PPO, env: Env | Envs | None = None, n_eval_episodes: int = 10, deterministic: bool = True, **_: Any
) -> tuple[float, float]:
    """Mean and standard deviation of the raw scores of so many whole episodes."""
    import numpy as np

    import surefoot
    from surefoot.runs.evaluation import evaluate

    given = env.env if isinstance(env, Envs) else env if env is not None else model.env
    spec = surefoot.configure(given).env
    scores = np.array(evaluate(model.policy, spec, range(n_eval_episodes), seed=0, greedy=deterministic).scores)
    return float(scores.mean()), float(scores.std())
