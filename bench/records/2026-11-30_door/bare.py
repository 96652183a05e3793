"""Milliseconds a step of 8 slow environments without surefoot: `python bare.py one|sync|asynchronous STEPS`."""

import sys
import time

import numpy as np
import slowenv

how, steps = sys.argv[1], int(sys.argv[2])
if how == "one":
    envs = [slowenv.Slow() for _ in range(8)]
    for env in envs:
        env.reset(seed=0)

    def step() -> None:
        for env in envs:
            if env.step(0)[2]:
                env.reset()
else:
    vector = getattr(slowenv, how)(8)
    vector.reset(seed=0)

    def step() -> None:
        vector.step(np.zeros(8, np.int64))


for _ in range(5):
    step()
begun = time.perf_counter()
for _ in range(steps):
    step()
print(f"bare {how} {1000 * (time.perf_counter() - begun) / steps:.2f} ms a step of 8", flush=True)
if how != "one":
    vector.close()
