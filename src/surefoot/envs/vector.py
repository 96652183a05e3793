"""The environments of one rank, stepped one after another in this process, or together as a user's VectorEnv."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from surefoot.envs.closing import close_env
from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import Environment, EnvSpec, Episode, StepResult, make, making
from surefoot.envs.spaces import blank
from surefoot.errors import OURS, Fault, UserError, note, require, said
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.rng import Purpose, integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surefoot.envs.vector_env import VectorEnvAdapter

    Array = NDArray[Any]

REPLAYED = 1_000  # steps of an episode that is played again for a comparison
MAX_REWARD = 3e38  # largest magnitude in single precision


class EnvVector:
    """The environments `indices` of a run; one that ends an episode is reset in the same step.

    `restarts`: how many times, in all, an environment that crashes is recreated; `heartbeat`: for the watchdog.
    """

    def __init__(
        self, spec: EnvSpec, seed: int, indices: range, restarts: int = 0, heartbeat: Heartbeat | None = None
    ) -> None:
        self.spec, self.indices, self.seed, self.restarts = spec, indices, seed, restarts
        self.heartbeat = heartbeat or Heartbeat.of(len(indices))
        self.vector: VectorEnvAdapter | None = None
        self.envs: list[Environment] = []
        self.open()
        first = self.envs[0]
        self.observation_space, self.action_space = first.observation_space, first.action_space
        row = blank(first.observation_space)
        self.obs: Array = np.zeros((len(indices), *row.shape), row.dtype)
        self.episodes = [0] * len(indices)
        """number of episodes begun, per environment"""
        self.score = [0.0] * len(indices)
        self.length = [0] * len(indices)
        self.finished: list[Episode] = []
        self.steps = 0
        """steps since `take_finished`"""

    def __len__(self) -> int:
        return len(self.indices)

    def open(self) -> None:
        """Make all environments, or the VectorEnv that holds them."""
        self.heartbeat.make(0)
        if isinstance(self.spec, Gymnasium):
            from surefoot.envs.gym_env import GymnasiumEnv

            with making(self.spec):
                first = self.spec.open(len(self))
            if not isinstance(first, GymnasiumEnv):
                self.take(first)
                return
            self.envs = [first]
        try:
            for i in range(len(self.envs), len(self)):
                self.envs.append(self.make(i))
        except UserError as error:
            one = bool(self.envs)
            self.close()
            if not (one and isinstance(error, Fault)):
                raise
            cure = "one was made before it: where there is only one at a time, train with --num-envs 1 --ranks 1"
            raise Fault(f"{error}; {cure}") from error

    def take(self, vector: VectorEnvAdapter) -> None:
        """Play the environments of a VectorEnv."""
        vector.require(len(self))
        if self.restarts:
            close_env(vector.env)
            require(False, "env_restarts", self.restarts, "0 with a VectorEnv, whose environments fail together")
        self.vector, self.envs = vector, list(vector.envs)

    def announce(self, num_steps: int) -> None:
        """Say before training where rollouts of `num_steps` take more than a quarter of the machine's memory."""
        if not hasattr(os, "sysconf"):
            return
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        size = 2 * (num_steps + 1) * self.obs.nbytes  # as observed, and preprocessed
        if size > memory / 4:
            share = f"{size / 1e9:.1f} GB of {memory / 1e9:.1f} GB of memory"
            note(f"a rollout of {num_steps} steps takes {share}: fewer or smaller ones")

    @property
    def next_step(self) -> bool:
        """Whether some steps are resets and no transitions (`StepResult.skipped`)."""
        return self.vector is not None and self.vector.next_step

    def make(self, i: int) -> Environment:
        """A new environment for index i."""
        self.heartbeat.make(i)
        return make(self.spec)

    def reset(self, i: int, out: Array) -> None:
        """Begin the next episode of environment i; its seed depends on the run's seed, the environment and episode."""
        n, k = self.indices[i], self.episodes[i]
        seed = integer(self.seed, Purpose.RESETS, 0 if self.vector else n, k) + (n if self.vector else 0)
        self.heartbeat.begin(i, -1 if self.vector else seed)
        self.episodes[i] += 1
        self.score[i], self.length[i] = 0.0, 0
        try:
            self.envs[i].reset(seed, out)
        except OURS:
            raise
        except BaseException as error:
            self.restart(i, out, error)

    def reset_all(self, episode: int = 0) -> None:
        """Begin episode number `episode` in every environment."""
        self.episodes = [episode] * len(self)
        self.finished = []
        for i in range(len(self)):
            self.reset(i, self.obs[i])
        self.check(self.obs)
        self.heartbeat.rest()

    def step(self, actions: Any, out: Array, only: Sequence[int] | None = None) -> StepResult:
        """One step of every environment, or of those in `only`; the next observations go into `out` [N, ...].

        Raises Fault where an environment raises and no restart is left, or where a number is not finite.
        """
        n = len(self)
        result = StepResult([0.0] * n, [False] * n, [False] * n, {}, [])
        self.steps += only is None
        self.heartbeat.decide(actions if isinstance(actions, list) else [], self.length, only is not None)
        if self.vector is not None:
            self.heartbeat.at(n)
            try:
                self.vector.step(actions)
            except OURS:
                raise
            except BaseException as error:
                raise self.fault(n, error) from error
            result.skipped = self.vector.skipped
        envs, at, skipped = self.envs, self.heartbeat.at, result.skipped
        for i in range(n) if only is None else only:
            at(i)
            if skipped and i in skipped:
                self.reset(i, out[i])
                continue
            try:
                reward, terminated, truncated = envs[i].step(actions[i], out[i])
            except OURS:
                raise
            except BaseException as error:
                self.restart(i, out[i], error)
                result.restarted.append(i)
                continue
            if not -MAX_REWARD < reward < MAX_REWARD:
                raise self.fault(i, ValueError(f"its reward is {reward}"))
            self.score[i] += reward
            self.length[i] += 1
            result.reward[i], result.terminated[i], result.truncated[i] = reward, terminated, truncated
            if terminated or truncated:
                result.final[i] = out[i].copy()
                self.check(out[i : i + 1], i)
                if not envs[i].life_lost:
                    self.finished.append(Episode(self.indices[i], self.score[i], self.length[i], self.steps))
                    if not self.next_step:
                        self.reset(i, out[i])
        self.check(out)
        self.heartbeat.rest()
        self.obs = out
        return result

    def check(self, obs: Array, first: int = 0) -> None:
        """Raise Fault where observations [n, ...] of the environments from `first` on are not finite."""
        if obs.dtype.kind == "f" and not np.isfinite(obs).all():
            wrong = next(i for i, row in enumerate(obs) if not np.isfinite(row).all())
            raise self.fault(first + wrong, ValueError("its observation is not finite"))

    def fault(self, i: int, error: BaseException) -> Fault:
        """The Fault of environment i, which failed: where in the run, and with which error."""
        return Fault(f"{self.heartbeat.where(i, self.indices.start + i)} failed: {said(error)}")

    def restart(self, i: int, out: Array, error: BaseException) -> None:
        """Recreate environment i after an error and begin a new episode; raises Fault where no restart is left."""
        if not self.restarts:
            raise self.fault(i, error) from error
        self.restarts -= 1
        note(f"{self.fault(i, error)}; it begins anew, {self.restarts} restarts are left")
        with suppress(Exception):  # it is broken already
            self.envs[i].close()
        self.envs[i] = self.make(i)
        self.reset(i, out)

    def take_finished(self) -> list[Episode]:
        """The episodes finished since the last call."""
        finished, self.finished, self.steps = self.finished, [], 0
        return finished

    def snapshot(self) -> dict[str, Array]:
        """The state of all environments with their counters, as arrays named INDEX/FIELD."""
        saved: dict[str, Array] = {}
        for i, env in enumerate(self.envs):
            counters = np.array([self.episodes[i], self.length[i]], np.int64)
            fields = env.snapshot() | {"counters": counters, "score": np.array([self.score[i]], np.float64)}
            saved |= {f"{self.indices[i]}/{name}": array for name, array in fields.items()}
        return saved

    def restore(self, saved: dict[str, Array]) -> list[int]:
        """Restore a snapshot; returns the environments that could not be restored and began a new episode instead."""
        lost = []
        self.heartbeat.end()  # replaying a long episode is no reason for an alarm
        for i, n in enumerate(self.indices):
            fields = {k.split("/", 1)[1]: v for k, v in saved.items() if k.startswith(f"{n}/")}
            self.episodes[i], self.length[i] = (int(x) for x in fields.pop("counters"))
            self.score[i] = float(fields.pop("score")[0])
            restored = False
            with suppress(Exception):  # an environment that raises in its replay is not restored
                restored = self.envs[i].restore(fields, self.obs[i])
            if not restored:
                self.reset(i, self.obs[i])
                lost.append(n)
            else:
                self.heartbeat.begin(i, integer(self.seed, Purpose.RESETS, n, self.episodes[i] - 1))
                self.heartbeat.end()
        self.heartbeat.rest()
        return lost

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Without these environments: they are closed, made again afterwards, and go on where they were.

        Those that cannot be restored begin new episodes, with a note.
        """
        saved = self.snapshot()
        self.close()
        yield
        self.open()
        if lost := self.restore(saved):
            note(
                f"environments {lost} were closed meanwhile, did not replay to where they were, and begin new episodes"
            )

    def close(self) -> None:
        """Close every environment, once."""
        envs, self.envs = self.envs, []
        for env in envs:
            env.close()


def replays(spec: EnvSpec, saved: dict[str, Array], index: int) -> bool:
    """Whether the episode of environment `index` in a snapshot is the same when it is played again elsewhere.

    True also where nothing is compared: for emulators, Gymnasium's own environments and VectorEnvs, for episodes of
    more than REPLAYED steps, and where the environment cannot be had.
    """
    steps = int(saved[f"{index}/counters"][1])
    if not isinstance(spec, Gymnasium) or not spec.is_foreign() or not 0 < steps <= REPLAYED:
        return True
    with suppress(Exception):
        again = EnvVector(spec, 0, range(index, index + 1))
        try:
            return again.vector is not None or not again.restore(saved)
        finally:
            again.close()
    return True
