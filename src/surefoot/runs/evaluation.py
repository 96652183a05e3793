"""Evaluation: whole episodes with fresh seeds and raw scores, with bootstrap confidence intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.algorithm.fast_paths import inference_policy
from surefoot.envs.atari import Atari, Pong
from surefoot.envs.interface import Environment, EnvSpec, Episode, make
from surefoot.envs.spaces import blank
from surefoot.errors import Fault, Interrupted, note
from surefoot.models.policy import Policy
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.parallel.ranks import Ranks
from surefoot.rng import Purpose, integer, stream

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

    sticky: float
    """probability, in each frame, that the previous action was repeated"""


def middle_mean(scores: Array) -> Array:
    """Mean of the middle half along the last axis: a quarter, rounded down, is cut off at each end.

    Source: Agarwal et al. 2021, the interquartile mean.
    """
    cut = scores.shape[-1] // 4
    mean: Array = np.sort(scores)[..., cut : scores.shape[-1] - cut].mean(-1)
    return mean


def evaluate(
    policy: Policy,
    env: EnvSpec,
    episodes: Sequence[int] = range(100),
    seed: int = 0,
    greedy: bool = False,
    parallel: int = 32,
    progress: Callable[[int], None] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Play the episodes with the given numbers, `parallel` at a time; `alive` is called before every step.

    Episode e has a seed and noise of its own, so neither `parallel` nor the other games change what it meets (though
    the last bits of a network's output depend on the batch, and with them, rarely, an action).
    """
    start = perf_counter()
    policy = inference_policy(policy)
    waiting = iter(episodes)
    slots = [_Slot(make(env), seed, next(waiting), alive) for _ in range(min(parallel, len(episodes)))]
    playing = list(slots)
    results: dict[int, Episode] = {}
    device = next(policy.parameters()).device
    while playing:
        with torch.no_grad():
            dist = policy(torch.from_numpy(np.stack([slot.obs for slot in playing])).to(device))[0]
            draws = [slot.noise.random(policy.noise_shape, np.float32) for slot in playing]
            noise = torch.from_numpy(np.stack(draws)).to(device)
            actions = (dist.greedy() if greedy else dist.sample(noise)).tolist()
        for slot, action in zip(list(playing), actions, strict=True):
            if slot.step(action):
                results[slot.episode] = Episode(slot.episode, slot.score, slot.length)
                if progress:
                    progress(len(results))
                following = next(waiting, None)
                if following is None:
                    playing.remove(slot)
                else:
                    slot.begin(following)
    for slot in slots:
        slot.game.close()
    played = [results[e] for e in episodes]
    scores, lengths = [e.score for e in played], [e.length for e in played]
    return with_stickiness(env, Evaluation(scores, lengths, greedy, seed, perf_counter() - start))


def with_stickiness(env: EnvSpec, found: Evaluation) -> Evaluation:
    """As a ConsoleEvaluation, where the environment is a console."""
    return ConsoleEvaluation(**vars(found), sticky=env.sticky) if isinstance(env, Pong | Atari) else found


def evaluate_shared(
    policy: Policy,
    env: EnvSpec,
    episodes: range,
    seed: int,
    ranks: Ranks,
    heartbeat: Heartbeat,
    show: Callable[[str], None],
    playing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation | None:
    """Evaluate on all ranks, each playing its share of the episodes; every rank returns the result of all episodes.

    None where an environment has failed on any rank, or where a signal has broken it off while `playing`.
    """
    mine, part = episodes[ranks.rank :: ranks.count], None

    def progress(done: int) -> None:
        show(f"evaluating: {done * ranks.count} of {len(episodes)} episodes")

    try:
        with playing():
            part = evaluate(policy, env, mine, seed, progress=None if ranks.rank else progress, alive=heartbeat.rest)
    except (Fault, Interrupted) as cause:  # the policy is saved already
        if isinstance(cause, Fault):
            note(f"{cause}; this evaluation is given up")
    heartbeat.end()  # the others may take longer
    if ranks.any(part is None) or part is None:
        return None
    parts = [json.loads(data) for data in ranks.all_gather_bytes(json.dumps([part.scores, part.lengths]).encode())]
    scores, lengths = in_order(parts)
    return replace(part, scores=scores, lengths=lengths)


def in_order(parts: list[list[list[Any]]]) -> Iterator[list[Any]]:
    """Scores and lengths of all episodes in order; rank r of n has played episodes r, r + n, r + 2n, ..."""
    episodes, count = sum(len(scores) for scores, _ in parts), len(parts)
    return ([parts[e % count][k][e // count] for e in range(episodes)] for k in (0, 1))


class _Slot:
    """One of the parallel environments and its present episode."""

    def __init__(self, game: Environment, seed: int, episode: int, alive: Callable[[], None]) -> None:
        self.game, self.seed, self.alive = game, seed, alive
        self.obs = blank(game.observation_space)
        self.begin(episode)

    def begin(self, episode: int) -> None:
        self.episode, self.score, self.length = episode, 0.0, 0
        self.noise = stream(self.seed, Purpose.EVALUATION, 1, episode)
        self.begun = integer(self.seed, Purpose.EVALUATION, 0, episode)
        self.alive()
        try:
            self.game.reset(self.begun, self.obs)
        except (Exception, SystemExit) as error:
            raise self.fault(error) from error

    def fault(self, error: BaseException) -> Fault:
        where = f"evaluation episode {self.episode} (its seed {self.begun}), step {self.length + 1}"
        return Fault(f"the environment failed in {where}: {type(error).__name__}: {error}")

    def step(self, action: Any) -> bool:
        self.alive()
        try:
            reward, terminated, truncated = self.game.step(action, self.obs)
        except (Exception, SystemExit) as error:
            raise self.fault(error) from error
        self.score += reward
        self.length += 1
        return (terminated or truncated) and not self.game.life_lost


@contextmanager
def on_terminal(episodes: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A progress line on standard error, removed at the end; None where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return

    def show(text: str) -> None:
        with suppress(OSError):
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)

    show(f"evaluating: 0 of {episodes} episodes")
    try:
        yield lambda done: show(f"evaluating: {done} of {episodes} episodes")
    finally:
        show("")


def print_evaluation(result: Evaluation, as_json: bool) -> None:
    """Print an evaluation as one JSON object or as a table."""
    facts = result.to_json()
    if as_json:
        print(json.dumps(facts))
        return
    sticky = f", sticky {result.sticky:g}" if isinstance(result, ConsoleEvaluation) else ""
    how = "greedy" if result.greedy else "sampled"
    print(f"{facts['episodes']} full episodes, actions {how}, seed {result.seed}{sticky}")
    for name, key, prefix in (("mean", "mean", ""), ("interquartile mean", "iqm", "iqm_")):
        interval = f"bootstrap 95 % interval {facts[prefix + 'low']:.2f} to {facts[prefix + 'high']:.2f}"
        print(f"  {name:<18}  {facts[key]:.2f}   ({interval})")
    extent = f"from {facts['min']:g} to {facts['max']:g}; deviation {facts['std']:.1f}"
    print(f"  {'median':<18}  {facts['median']:.2f}   ({extent})")
    print(f"  {'length':<18}  {facts['length_mean']:,.0f} steps; {result.seconds:.0f} s")
