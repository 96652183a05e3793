import time

import gymnasium
import numpy as np
from gymnasium import spaces


class Slow(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)

    def _see(self):
        return self.np_random.random(4, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}

    def step(self, action):
        end = time.thread_time() + 0.002  # two milliseconds of processor time
        while time.thread_time() < end:
            pass
        self.t += 1
        return self._see(), float(action), self.t == 50, False, {}


def sync(num_envs):
    return gymnasium.vector.SyncVectorEnv([Slow] * num_envs)


def asynchronous(num_envs):
    return gymnasium.vector.AsyncVectorEnv([Slow] * num_envs)


class Asleep(Slow):
    def step(self, action):
        time.sleep(0.002)
        self.t += 1
        return self._see(), float(action), self.t == 50, False, {}


def asleep(num_envs):
    return gymnasium.vector.AsyncVectorEnv([Asleep] * num_envs)
