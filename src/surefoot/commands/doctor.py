"""`surefoot doctor`: what this machine and this installation can do, and what is wrong with an environment."""

from __future__ import annotations

import importlib.metadata as installed
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from time import perf_counter

import numpy as np

import surefoot
from surefoot.commands.benchmark import bare, bench
from surefoot.commands.random_play import RandomPlayer
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import EnvSpec, make
from surefoot.errors import OURS, Fault, UserError, said
from surefoot.models.networks import MLP
from surefoot.output import clock
from surefoot.parallel.launch import choose_ranks, usable_cores
from surefoot.presets import PRESETS, find

STEPS = 500  # of an environment that is examined, in each of its episodes
START = 3.0  # seconds from the start of a process to its first rollout
NOT_FOR_USERS = {"all", "dev", "docs"}
Line = tuple[str, str]
Episode = list[tuple[bytes, float]]  # observation and reward of every step


def requirements(package: str, extra: str) -> Iterator[tuple[str, list[str]]]:
    """The packages of an extra with this Python, each with its own extras."""
    for text in installed.requires(package) or ():
        bounds = re.findall(r"python_version (<|>=) ['\"](\d+)\.(\d+)['\"]", text)
        here = all((sys.version_info[:2] >= (int(major), int(minor))) is (way == ">=") for way, major, minor in bounds)
        if here and re.search(rf"extra == ['\"]{extra}['\"]", text):
            name, more = re.findall(r"^([\w.-]+)(?:\[([\w,-]+)\])?", text)[0]
            yield name, more.split(",") if more else []


def missing(package: str, extra: str) -> list[str]:
    """What of an extra is not installed."""
    lacking = list[str]()
    for name, more in requirements(package, extra):
        try:
            installed.version(name)
        except installed.PackageNotFoundError:
            lacking.append(name)
        else:
            lacking += [each for inner in more for each in missing(name, inner)]
    return list(dict.fromkeys(lacking))


def extras() -> dict[str, list[str]]:
    """What each extra lacks here."""
    extras = re.findall(r"extra == ['\"]([\w-]+)['\"]", "\n".join(installed.requires("surefoot") or ()))
    return {name: missing("surefoot", name) for name in sorted(set(extras) - NOT_FOR_USERS)}


def processor() -> str:
    """The processor's name, as the system has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            match = re.search(r"model name\s*:\s*(.+)", file.read())
        return match[1] if match else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def machine() -> Iterator[Line]:
    """Cores, processor, versions, threads, disk, extras."""
    import torch

    from surefoot.models.policy import bf16_units

    cores, total = usable_cores(), os.cpu_count() or 1
    of = "" if cores == total else f" of {total} (affinity, or a container's limit)"
    units = bf16_units() or "no bfloat16 units: --bf16 gains nothing"
    yield "cores", f"{cores}{of}: {processor()}; {torch.backends.cpu.get_cpu_capability()}, {units}"
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 1.5 * total:
        yield "", f"other programs want {load:.1f} cores at present: what is measured here is too slow"
    names = ("torch", "gymnasium", "numpy", "ale-py")
    versions = ", ".join(f"{name} {installed.version(name)}" for name in names)
    yield "versions", f"surefoot {surefoot.__version__}, Python {platform.python_version()}, {versions}"
    yield "threads", f"PyTorch {torch.get_num_threads()}; every rank of a run computes with one, which needs no setting"
    devices = f"CUDA: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no GPU, and none is needed"
    yield "devices", devices
    yield "disk", f"{shutil.disk_usage('.').free / 1e9:,.0f} GB free here"
    lacking = {name: packages for name, packages in extras().items() if packages}
    for name, packages in lacking.items():
        yield f"no {name}", f"{', '.join(packages)}: pip install 'surefoot[{name}]'"
    if not lacking:
        yield "extras", "all are installed"


def speed(cfg: Config, seconds: float) -> Iterator[Line]:
    """What training is measured to do, and how long the whole run will take."""
    ranks = choose_ranks(int(isinstance(cfg.network, MLP)), cfg.num_envs)
    (measured,) = bench(cfg, seconds, ranks)
    each = f"{measured.bare / ranks:,.0f} steps/s on one core, {measured.emulate / ranks:,.0f} as training sees it"
    yield "environment", each
    time = START + cfg.total_steps / measured.loop
    yield cfg.task, f"{cfg.total_steps:,} steps in about {clock(time)}: {measured.loop:,.0f} steps/s on {ranks} ranks"
    most = choose_ranks(0, cfg.num_envs)
    if ranks < most and measured.loop > measured.emulate / 2:
        yield "", f"more than half of this time is the environment's: --ranks {most} plays in {most} processes"


class Player(RandomPlayer):
    """Plays an environment with random actions that depend on a seed alone."""

    def play(self, seed: int, steps: int) -> Episode:
        """Observation and reward of every step of an episode, the first with reward 0; Fault where it fails."""
        rng, k = np.random.default_rng(seed), 0
        try:
            self.env.reset(seed, self.obs)
            seen = [(self.obs.tobytes(), 0.0)]
            while k < steps:
                k += 1
                reward, terminated, truncated = self.env.step(self.action(rng), self.obs)
                seen.append((self.obs.tobytes(), reward))
                self.over = terminated or truncated
                if self.over and not self.env.life_lost:
                    break
        except (UserError, *OURS):
            raise
        except BaseException as error:
            raise Fault(f"the environment failed in step {k} of an episode with seed {seed}: {said(error)}") from error
        return seen


def differ(a: Episode, b: Episode) -> str:
    """Where two episodes part: empty where they are the same."""
    for t, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return (
                "the first observation" if t == 0 else f"step {t} ({'reward' if one[0] == other[0] else 'observation'})"
            )
    return "" if len(a) == len(b) else f"the length ({len(a) - 1} and {len(b) - 1} steps)"


def environment(spec: EnvSpec) -> Iterator[Line]:
    """Spaces, resets, determinism, replay, speed of an environment; raises UserError or Fault where it is none."""
    start = perf_counter()
    game = make(spec)
    made = perf_counter() - start
    yield "observes", f"{game.observation_space}"
    yield "acts", f"{game.action_space}"
    player, episodes, seconds = Player(game), list[Episode](), 0.0
    start = perf_counter()
    for seed in range(5):
        episodes.append(player.play(seed, STEPS))
    seconds = perf_counter() - start
    start = perf_counter()
    game.reset(0, player.obs)
    reset = perf_counter() - start
    ended = [episode for episode in episodes if len(episode) <= STEPS]
    steps = sum(len(episode) - 1 for episode in episodes)
    scores = [sum(reward for _, reward in episode) for episode in ended]
    what = f"{len(ended)} of {len(episodes)} ended within {STEPS} steps of random actions"
    what += f", with scores from {min(scores):.4g} to {max(scores):.4g}" if scores else f": {ENDLESS}"
    yield "episodes", what
    rewards = {reward for episode in episodes for _, reward in episode[1:]}
    if len(rewards) == 1:
        yield "rewards", f"always {rewards.pop():g} with random actions: there may be nothing to learn from"
    yield (
        "speed",
        f"{steps / seconds:,.0f} steps/s, a reset takes {1000 * reset:.3g} ms, making it {1000 * made:.3g} ms",
    )
    same = "the same" if episodes[0][0] == episodes[1][0] else "different"
    yield "seeds", f"two seeds give {same} first observations"
    yield "replay", verdict(episodes, player, "in the same environment", INEXACT)
    game.close()
    other = make(spec)
    yield "determinism", verdict(episodes, Player(other), "in a new environment", UNSEEDED)
    other.close()


ENDLESS = "where they never end, --env.wrappers TimeLimit:max_episode_steps=1000"
INEXACT = "it carries something over, so resumed runs are not exact; --env.remake may cure it"
UNSEEDED = "it draws random numbers that its seed does not decide, so no run can be repeated"


def verdict(episodes: list[Episode], player: Player, where: str, then: str) -> str:
    """What episodes with seeds from 0 are like when they are played again."""
    apart = next(filter(None, (differ(episode, player.play(k, STEPS)) for k, episode in enumerate(episodes))), "")
    return f"an episode played again {where} is " + (f"another from {apart} on: {then}" if apart else "the same")


def choice(cfg: Config) -> str:
    """What surefoot chooses for a task."""
    kind = "by its spaces" if isinstance(cfg.env, Gymnasium) and cfg.task not in PRESETS else "its preset"
    network, rollout = type(cfg.network).__name__, f"{cfg.num_envs} environments x {cfg.num_steps[0]} steps"
    return f"{kind}: {network}, {rollout}, {cfg.num_epochs} epochs, {cfg.total_steps:,} steps"


def doctor(task: str | None = None, seconds: float = 2.0) -> Iterator[Line]:
    """The lines of the command: of this machine, or of an environment."""
    if task is None:
        yield from machine()
        yield from speed(PRESETS["pong"], seconds)
        return
    cfg = find(task)
    yield "task", cfg.task if getattr(cfg.env, "id", cfg.task) == cfg.task else f"{cfg.task}: {cfg.env}"
    yield from environment(cfg.env)
    yield "chosen", choice(cfg)
    yield "alone", f"{bare(cfg.env, seconds / 4):,.0f} steps/s without surefoot"
