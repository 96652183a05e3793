"""Stable-Baselines3's side of the race and of the speed bench; runs in an environment of its own, without surefoot.

    python bench/peer.py run --env PongNoFrameskip-v4 --seconds 3600 --save-every 60 --out DIR
    python bench/peer.py judge < orders

`run` trains PPO and writes DIR/metrics.jsonl (a row per rollout, surefoot's keys) and DIR/policies/STEPS.zip; `judge`
reads [policy file, seed, rule] line by line and answers each with the scores of its games.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from common import Rule

gymnasium.register_envs(ale_py)

# The zoo's settings for Atari games (rl-baselines3-zoo, hyperparams/ppo.yml); the rest is the library's defaults.
ATARI: dict[str, Any] = {
    "n_steps": 128,
    "n_epochs": 4,
    "batch_size": 256,
    "learning_rate": LinearSchedule(2.5e-4, 0.0, 1.0),
    "clip_range": LinearSchedule(0.1, 0.0, 1.0),
    "vf_coef": 0.5,
    "ent_coef": 0.01,
}
ATARI_STEPS = 10_000_000

# surefoot's settings of CartPole and of continuous control, for a comparison at equal work (the zoo's differ).
POLE: dict[str, Any] = {
    "n_steps": 64,
    "n_epochs": 4,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "clip_range": 0.2,
    "max_grad_norm": 1.0,
}
CONTROL = POLE | {
    "n_steps": 256,
    "n_epochs": 10,
    "batch_size": 256,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "max_grad_norm": 0.5,
}


class Looking(BaseCallback):
    """Writes a row per rollout, saves policies, ends in time; times collecting, and stepping the games within it."""

    def __init__(self, args: argparse.Namespace, env: VecEnv) -> None:
        super().__init__()
        self.args, self.out = args, args.out
        self.saved = self.begun = self.collected = time.time()
        self.env_s, self.row = 0.0, dict[str, Any]()
        step = env.step

        def timed(actions: Any) -> Any:
            before = time.time()
            result = step(actions)
            self.env_s += time.time() - before
            return result

        env.step = timed  # type: ignore[method-assign]

    def _on_rollout_start(self) -> None:
        """Training on the rollout before has ended."""
        now = time.time()
        if self.row:
            self.row |= {"seconds": now - self.args.began, "learn_s": now - self.collected}
            with open(self.out / "metrics.jsonl", "a") as file:
                file.write(json.dumps({k: round(v, 4) for k, v in self.row.items()}) + "\n")
        if self.args.save_every and now - self.saved >= self.args.save_every:
            self.save()
        self.begun, self.env_s = time.time(), 0.0

    def save(self) -> None:
        """Save the policy, whole or not at all."""
        beside = self.out / "policies" / ".writing.zip"
        self.model.policy.save(beside)
        beside.rename(self.out / "policies" / f"{self.num_timesteps:09d}.zip")
        self.saved = time.time()

    def _on_rollout_end(self) -> None:
        self.collected = time.time()
        scores = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        act_s = self.collected - self.begun - self.env_s
        self.row = {"step": self.num_timesteps, "env_s": self.env_s, "act_s": act_s, "return_window": len(scores)}
        self.row["return_mean"] = float(sum(scores)) / max(1, len(scores))

    def _on_step(self) -> bool:
        if time.time() - self.args.began >= self.args.seconds:
            return False
        return not (self.row.get("return_window") == 100 and self.row["return_mean"] >= self.args.stop_at)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    (args.out / "policies").mkdir(parents=True, exist_ok=True)
    kind: type[VecEnv] = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[args.vec]
    if "NoFrameskip" in args.env:
        env: VecEnv = VecFrameStack(make_atari_env(args.env, 8, args.seed, vec_env_cls=kind), 4)
        model = PPO("CnnPolicy", env, seed=args.seed, device="cpu", **ATARI)
    else:
        env = make_vec_env(args.env, 8, args.seed, vec_env_cls=kind)
        pole = args.env.startswith("CartPole")
        env = env if pole else VecNormalize(env)
        model = PPO("MlpPolicy", env, seed=args.seed, device="cpu", **(POLE if pole else CONTROL))
    looking = Looking(args, model.env)
    model.learn(ATARI_STEPS, looking, log_interval=1_000_000)
    if args.save_every:
        looking.save()
    env.close()


def judge() -> None:
    """Full games: raw scores, no life-loss endings, no clipped rewards, up to 30 no-ops, actions sampled."""
    torch.set_num_threads(1)
    kept: dict[int, VecEnv] = {}
    whole = {"terminal_on_life_loss": False, "clip_reward": False}
    for line in sys.stdin:
        file, seed, rule = json.loads(line)
        policy = ActorCriticCnnPolicy.load(file, device="cpu")

        def play(episodes: range, policy: Any = policy, seed: int = seed) -> list[float]:
            count = len(episodes)
            if count not in kept:
                kept[count] = VecFrameStack(make_atari_env("PongNoFrameskip-v4", count, wrapper_kwargs=whole), 4)
            kept[count].seed(seed + episodes.start)
            torch.manual_seed(seed + episodes.start)
            scores, _ = evaluate_policy(policy, kept[count], count, deterministic=False, return_episode_rewards=True)
            return [float(score) for score in scores]  # type: ignore[union-attr]

        print(json.dumps(Rule(**rule).judge(play)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("run", "judge", "settings"))
    parser.add_argument("--env", default="PongNoFrameskip-v4")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vec", choices=("dummy", "subproc"), default="dummy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="from the beginning, imports included")
    parser.add_argument("--save-every", type=float, default=0.0, help="0: never")
    parser.add_argument("--stop-at", type=float, default=float("inf"), help="mean of the last 100 training games")
    parser.add_argument("--began", type=float, default=time.time(), help="when the clock began (time.time())")
    args = parser.parse_args()
    if args.mode == "run":
        run(args)
    elif args.mode == "judge":
        judge()
    else:
        import stable_baselines3

        versions = {m.__name__: m.__version__ for m in (stable_baselines3, torch, gymnasium, ale_py)}
        print(json.dumps({"versions": versions, "rule": asdict(Rule())}))


if __name__ == "__main__":
    main()
