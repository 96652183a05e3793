"""Evaluation: whole episodes with fresh seeds and raw scores, with bootstrap confidence intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.algorithm.fast_paths import inference_policy
from surefoot.envs.atari import Atari, Pong
from surefoot.envs.interface import Environment, EnvSpec, Episode, make
from surefoot.envs.spaces import blank
from surefoot.errors import OURS, Fault, Interrupted, note, said
from surefoot.models.policy import Policy
from surefoot.output import doing
from surefoot.parallel.guard import leave_if_copy
from surefoot.parallel.ranks import Ranks
from surefoot.rng import Purpose, integer, stream
from surefoot.runs.measures import middle_mean

if TYPE_CHECKING:
    from surefoot.algorithm.state import State
    from surefoot.config import Config

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Scores of whole episodes, and their statistics."""

    scores: list[float]
    """raw score of each episode, in the order of their seeds"""
    lengths: list[int]
    """steps of each episode"""
    greedy: bool
    """the most probable action was taken instead of a sampled one"""
    seed: int
    """the seed of everything: the episodes' own seeds and the sampled actions"""
    seconds: float
    """duration"""
    cut: int = 0
    """how many episodes had not ended and were cut (`eval_max_steps`)"""

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(np.mean(self.scores))

    @property
    def interval(self) -> tuple[float, float]:
        """Bootstrap 95 % interval of the mean (10,000 resamples, percentile)."""
        return self._interval(lambda scores: scores.mean(-1))

    @property
    def iqm(self) -> float:
        """Interquartile mean: of the middle half of the scores."""
        return float(middle_mean(np.array(self.scores)))

    @property
    def iqm_interval(self) -> tuple[float, float]:
        """Bootstrap 95 % interval of the interquartile mean, from the same resamples."""
        return self._interval(middle_mean)

    def _interval(self, statistic: Callable[[Array], Array]) -> tuple[float, float]:
        scores = np.array(self.scores)
        draws = stream(self.seed, Purpose.BOOTSTRAP).integers(len(scores), size=(10_000, len(scores)))
        low, high = np.percentile(statistic(scores[draws]), (2.5, 97.5))
        return float(low), float(high)

    def not_ended(self) -> str:
        """How many episodes were cut, and what to do about it."""
        return (
            f"{self.cut} of {len(self.scores)} episodes, cut after {max(self.lengths):,} steps (--eval-max-steps); "
            "gymnasium.wrappers.TimeLimit would end them in training too"
        )

    def to_json(self) -> dict[str, Any]:
        """The statistics, then the fields."""
        (low, high), (iqm_low, iqm_high) = self.interval, self.iqm_interval
        summary = {
            "episodes": len(self.scores),
            "mean": self.mean,
            "low": low,
            "high": high,
            "iqm": self.iqm,
            "iqm_low": iqm_low,
            "iqm_high": iqm_high,
            "median": float(np.median(self.scores)),
            "std": float(np.std(self.scores)),
            "min": min(self.scores),
            "max": max(self.scores),
            "length_mean": float(np.mean(self.lengths)),
        }
        return summary | asdict(self)


@dataclass(frozen=True)
class ConsoleEvaluation(Evaluation):
    """An evaluation on an Atari console, which may have sticky actions."""

    sticky: float = field(kw_only=True)
    """probability, in each frame, that the previous action was repeated"""


def evaluate(
    policy: Policy,
    env: EnvSpec,
    episodes: Sequence[int] = range(100),
    seed: int = 0,
    greedy: bool = False,
    parallel: int = 32,
    progress: Callable[[int], None] | None = None,
    alive: Callable[[], None] = leave_if_copy,
    max_steps: int = 0,
    share: int = 1,
    restarts: int = 0,
) -> Evaluation:
    """Play the episodes with the given numbers, `parallel` at a time; `alive` is called before every step.

    Episode e has a seed and noise of its own, so neither `parallel` nor the other games change what it meets (though
    the last bits of a network's output depend on the batch, and with them, rarely, an action). `max_steps`: an episode
    that has not ended then is cut; 0: never; `share`: so many processes play as many episodes each; `restarts`: so many
    times an environment that fails is made again and begins the same episode again. Raises CannotBegin where not even
    one environment can be made and reset.
    """
    start = perf_counter()
    policy = inference_policy(policy)
    waiting, slots = list(episodes)[::-1], list[_Slot]()
    results: dict[int, Episode] = {}
    device, cut = next(policy.parameters()).device, 0

    def told() -> str:
        steps = sum(e.length for e in list(results.values())) + sum(slot.length for slot in slots)
        done = f"evaluating: {len(results) * share} of {len(episodes) * share} episodes, {steps * share:,} steps"
        most = max((slot.length for slot in slots), default=0)
        end = f" (at the limit of {max_steps:,} it is cut: --eval-max-steps)" if max_steps else ""
        return f"{done}, {most:,} of one that has not ended{end}" if most > 500 else done

    def close() -> None:
        for slot in slots:
            slot.game.close()

    with ExitStack() as stack, doing(told):
        stack.callback(close)
        begin(slots, env, seed, waiting, min(parallel, len(episodes)), alive)
        playing = list(slots)
        while playing:
            obs = np.stack([slot.obs for slot in playing])
            with torch.no_grad():
                memory = policy.memory_of([slot.memory for slot in playing])
                dist, _, memory = policy(torch.from_numpy(obs).to(device), memory)
                for slot, row in zip(playing, () if memory is None else memory, strict=False):
                    slot.memory = row
                draws = [slot.noise.random(policy.noise_shape, np.float32) for slot in playing]
                noise = torch.from_numpy(np.stack(draws)).to(device)
                actions = (dist.greedy() if greedy else dist.sample(noise)).tolist()
            for slot, action in zip(list(playing), actions, strict=True):
                try:
                    over = slot.step(action)
                    if not over and slot.length != max_steps:
                        continue
                    cut += not over
                    results[slot.episode] = Episode(slot.episode, slot.score, slot.length)
                    if progress:
                        progress(len(results))
                    if waiting:
                        slot.begin(waiting.pop())
                    else:
                        playing.remove(slot)
                except Fault as fault:
                    restarts = slot.remake(env, fault, restarts)
    played = [results[e] for e in episodes]
    scores, lengths = [e.score for e in played], [e.length for e in played]
    return with_stickiness(env, Evaluation(scores, lengths, greedy, seed, perf_counter() - start, cut))


class CannotBegin(Fault):
    """Not even one environment of an evaluation could be made and reset."""


def begin(
    slots: list[_Slot], env: EnvSpec, seed: int, waiting: list[int], parallel: int, alive: Callable[[], None]
) -> None:
    """Make `parallel` environments, each in its first episode of `waiting`; fewer where no more than these can be had.

    Of some simulators (a port, a licence, a robot) there is one at a time, and a second one fails when it is made or
    first reset.
    """
    while len(slots) < parallel:
        game = None
        try:
            game = make(env)
            slots.append(_Slot(game, seed, waiting[-1], alive))
            waiting.pop()
        except Fault as fault:
            if game is not None:
                game.close()
            if not slots:
                raise CannotBegin(str(fault)) from fault
            note(f"{len(slots)} at a time are evaluated, since one more cannot be had ({fault})")
            return


def with_stickiness(env: EnvSpec, played: Evaluation) -> Evaluation:
    """As a ConsoleEvaluation, where the environment is a console."""
    return ConsoleEvaluation(**vars(played), sticky=env.sticky) if isinstance(env, Pong | Atari) else played


def longest(env: EnvSpec, max_steps: int) -> int:
    """`max_steps`, or 0 where every episode ends by itself: a console's do."""
    return 0 if isinstance(env, Pong | Atari) else max_steps


def evaluate_shared(
    policy: Policy,
    cfg: Config,
    episodes: range,
    state: State,
    ranks: Ranks,
    show: Callable[[str], None],
    playing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation | None:
    """Evaluate on all ranks, each playing its share of the episodes; every rank returns the result of all episodes.

    The environments of training are closed meanwhile where no other can be made beside them. Where training has seen
    no episode end, episodes are cut after as many steps as it has taken in one environment, at least 1,000.
    None where an environment has failed on any rank, or where a signal has broken it off while `playing`.
    """
    parallel = cfg.eval_envs or cfg.num_envs
    players = min(ranks.count, parallel)
    mine = episodes[ranks.rank :: players] if ranks.rank < players else range(0)
    part, envs, heartbeat = None, state.envs, state.envs.heartbeat
    most = longest(cfg.env, cfg.eval_max_steps)
    if most and not state.episodes:
        most = min(most, max(1_000, state.steps // cfg.num_envs))

    def progress(done: int) -> None:
        show(f"evaluating: {min(done * players, len(episodes))} of {len(episodes)} episodes")

    def play() -> Evaluation:
        share, shown = -(-parallel // players), None if ranks.rank else progress
        how = share, shown, heartbeat.rest, most, players, cfg.env_restarts
        return evaluate(policy, cfg.env, mine, cfg.seed, False, *how)

    try:
        with playing():
            try:
                part = play()
            except CannotBegin as fault:
                if not envs.envs:
                    raise
                note(f"training's environments are closed for the evaluation, since one more cannot be had ({fault})")
                with envs.closed():
                    part = play()
    except (Fault, Interrupted) as cause:  # the policy is saved already
        if isinstance(cause, Fault):
            note(f"{cause}; this evaluation is given up")
    heartbeat.end()  # the others may take longer
    if ranks.any(part is None) or part is None:
        return None
    parts = [json.loads(d) for d in ranks.all_gather_bytes(json.dumps([part.scores, part.lengths, part.cut]).encode())]
    return replace(part, **in_order(parts[:players]))


def in_order(parts: list[list[Any]]) -> dict[str, Any]:
    """Scores and lengths of all episodes in order, and how many were cut; part r of n played episodes r, r + n, ..."""
    episodes, count = sum(len(scores) for scores, *_ in parts), len(parts)
    scores, lengths = ([parts[e % count][k][e // count] for e in range(episodes)] for k in (0, 1))
    return {"scores": scores, "lengths": lengths, "cut": sum(part[2] for part in parts)}


class _Slot:
    """One of the parallel environments and its present episode."""

    def __init__(self, game: Environment, seed: int, episode: int, alive: Callable[[], None]) -> None:
        self.game, self.seed, self.alive = game, seed, alive
        self.obs = blank(game.observation_space)
        self.begin(episode)

    def begin(self, episode: int) -> None:
        self.episode, self.score, self.length = episode, 0.0, 0
        self.memory: torch.Tensor | None = None
        self.noise = stream(self.seed, Purpose.EVALUATION, 1, episode)
        self.begun = integer(self.seed, Purpose.EVALUATION, 0, episode)
        self.alive()
        try:
            self.game.reset(self.begun, self.obs)
        except OURS:
            raise
        except BaseException as error:
            raise self.fault(error) from error
        self.check()

    def remake(self, env: EnvSpec, fault: Fault, restarts: int) -> int:
        """Begin the present episode again, in a new environment; returns the restarts left, raises where none is."""
        while restarts:
            restarts -= 1
            note(f"{fault}; the episode begins anew, {restarts} restarts are left")
            self.game.close()
            try:
                self.game = make(env)
                self.begin(self.episode)
                return restarts
            except Fault as another:
                fault = another
        raise fault

    def fault(self, error: BaseException) -> Fault:
        where = f"evaluation episode {self.episode} (its seed {self.begun}), step {self.length + 1}"
        return Fault(f"the environment failed in {where}: {said(error)}")

    def check(self) -> None:
        """Raise Fault where the present observation is not finite."""
        if self.obs.dtype.kind == "f" and not np.isfinite(self.obs).all():
            raise self.fault(ValueError("its observation is not finite"))

    def step(self, action: Any) -> bool:
        self.alive()
        try:
            reward, terminated, truncated = self.game.step(action, self.obs)
        except OURS:
            raise
        except BaseException as error:
            raise self.fault(error) from error
        if not isfinite(reward):
            raise self.fault(ValueError(f"its reward is {reward}"))
        self.check()
        self.score += reward
        self.length += 1
        if terminated or truncated:
            self.memory = None
        return (terminated or truncated) and not self.game.life_lost
