"""What our games cost beside the bare emulator: both in turn, in one run, on one core.

python bench/emulation.py [--rounds 20] [--steps 2000] > record.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from time import perf_counter

import ale_py
import numpy as np

from surefoot.envs.atari import Pong
from surefoot.presets import LESSON_GAME
from surefoot.runner import machine


def bare(steps: int) -> None:
    """`steps` calls of ALEInterface.act with frame_skip 4, random buttons, resets included."""
    for _ in range(steps):
        ALE.act(BUTTONS[RNG.integers(3)])
        if ALE.game_over():
            ALE.reset_game()


def ours(game, out: np.ndarray, steps: int, seed: int) -> None:
    for i in range(steps):
        _, terminated, truncated = game.step(int(RNG.integers(len(game.buttons))), out)
        if terminated or truncated:
            game.reset(seed + i, out)


RNG = np.random.default_rng(0)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
ALE = ale_py.ALEInterface()
ALE.setInt("random_seed", 0)
ALE.setFloat("repeat_action_probability", 0.0)
ALE.setInt("frame_skip", 4)
ALE.loadROM(str(ale_py.roms.get_rom_path("pong")))
BUTTONS = [ale_py.Action.NOOP, ale_py.Action.LEFT, ale_py.Action.RIGHTFIRE]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    kinds = {"pong": (Pong().make(), 1), "pong-lesson": (LESSON_GAME.make(), 2)}  # emulator steps in a decision
    out = np.zeros((2, 80, 80), np.uint8)
    for game, _ in kinds.values():
        game.reset(0, out)
    rows = []
    for k in range(args.rounds):
        row = {}
        start = perf_counter()
        bare(args.steps)
        row["bare"] = (perf_counter() - start) / args.steps * 1e6
        for name, (game, steps) in kinds.items():
            start = perf_counter()
            ours(game, out, args.steps // steps, 1000 * k)
            row[name] = (perf_counter() - start) / args.steps * 1e6
        rows.append(row)
        print(f"{k + 1}/{args.rounds} " + " ".join(f"{n} {t:.0f}" for n, t in row.items()), file=sys.stderr)
    result = {"unit": "microseconds per 4-frame step", "machine": machine(), "rounds": rows}
    for name in kinds:
        ratios = sorted(row[name] / row["bare"] for row in rows)
        result[f"{name}_over_bare"] = {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
    result["bare_steps_per_second"] = 1e6 / statistics.median(row["bare"] for row in rows)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
