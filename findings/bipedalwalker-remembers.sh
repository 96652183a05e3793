#!/usr/bin/env bash
# Gymnasium 1.4.0, BipedalWalker-v3 with Box2D 2.3.10: reset(seed=...) does not always begin the same episode in an
# environment that has played before. Seen: of five seeds, with the same random actions, some episodes of an environment
# that had played one episode left those of a new environment by more than 1 (in observations of size 1); two new ones
# agree to the last bit. The same comparison on LunarLander-v3, also Box2D, finds no difference: its reset makes the
# world again. For a trainer: an episode cannot be replayed from its seed unless the environment is made anew.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gymnasium==1.4.0 box2d==2.3.10 pygame-ce==2.5.8
"$folder/venv/bin/python" - <<'PYTHON'
import gymnasium
import numpy as np


def play(env, seed):
    rng, seen = np.random.default_rng(seed), [env.reset(seed=seed)[0]]
    over = False
    while not over:
        action = rng.uniform(-1, 1, 4).astype(np.float32) if env.action_space.shape else int(rng.integers(4))
        obs, _, terminated, truncated, _ = env.step(action)
        seen.append(obs)
        over = terminated or truncated
    return np.array(seen)


def largest(a, b):
    length = min(len(a), len(b))
    return float(np.abs(a[:length] - b[:length]).max())


for name, carries in (("BipedalWalker-v3", True), ("LunarLander-v3", False)):
    used, new, later = gymnasium.make(name), [], []
    play(used, 100)
    for seed in range(7, 12):
        first = play(gymnasium.make(name), seed)
        new.append(largest(first, play(gymnasium.make(name), seed)))
        later.append(largest(first, play(used, seed)))
    print(f"{name}: new environments differ by {new}, a used one by {later}")
    assert max(new) == 0.0
    assert (max(later) > 1.0) == carries, "the behaviour has changed"
PYTHON
