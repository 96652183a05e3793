"""What our games cost beside the bare emulator, and beside ALE's own vector environment: in turn, on one core.

    taskset -c 0 python bench/emulation.py [--rounds 20] [--steps 2000] > record.json

`atari` is the literature's preprocessing (84x84, pooled, area-resized, stacked), of 8 games one after another;
`AtariVectorEnv` is ale_py's, 8 games on one thread, with the same settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from time import perf_counter

import ale_py
import numpy as np

from surefoot.envs.atari import Atari, Pong
from surefoot.presets import LESSON_GAME
from surefoot.runs.worker import machine


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


def together(game: str, steps: int) -> None:
    """`steps` decisions of ale_py.AtariVectorEnv, all 8 games together."""
    for _ in range(steps // 8):
        VECTORS[game].step(RNG.integers(VECTORS[game].single_action_space.n, size=8))


RNG = np.random.default_rng(0)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
ALE = ale_py.ALEInterface()
ALE.setInt("random_seed", 0)
ALE.setFloat("repeat_action_probability", 0.0)
ALE.setInt("frame_skip", 4)
ALE.loadROM(str(ale_py.roms.get_rom_path("pong")))
BUTTONS = [ale_py.Action.NOOP, ale_py.Action.LEFT, ale_py.Action.RIGHTFIRE]
VECTORS = {
    game: ale_py.AtariVectorEnv(
        game, 8, num_threads=1, autoreset_mode="SameStep", reward_clipping=False, use_fire_reset=False
    )
    for game in ("pong", "breakout")
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    kinds = {"pong": (Pong().make(), 1), "pong-lesson": (LESSON_GAME.make(), 2)}  # emulator steps in a decision
    out, wide = np.zeros((2, 80, 80), np.uint8), np.zeros((4, 84, 84), np.uint8)
    for game, _ in kinds.values():
        game.reset(0, out)
    eights = {game: [Atari(game).make() for _ in range(8)] for game in VECTORS}
    for game, eight in eights.items():
        VECTORS[game].reset(seed=0)
        for seed, one in enumerate(eight):
            one.reset(seed, wide)
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
        for game, eight in eights.items():
            start = perf_counter()
            for i in range(args.steps // 8):
                for one in eight:
                    ours(one, wide, 1, 1000 * k + i)
            middle = perf_counter()
            together(game, args.steps)
            row[f"atari {game}"] = (middle - start) / args.steps * 1e6
            row[f"AtariVectorEnv {game}"] = (perf_counter() - middle) / args.steps * 1e6
        rows.append(row)
        print(f"{k + 1}/{args.rounds} " + " ".join(f"{n} {t:.0f}" for n, t in row.items()), file=sys.stderr)
    result = {"unit": "microseconds per 4-frame step", "machine": machine(), "rounds": rows}
    for name in kinds:
        ratios = sorted(row[name] / row["bare"] for row in rows)
        result[f"{name}_over_bare"] = {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
    for game in VECTORS:
        ratios = sorted(row[f"AtariVectorEnv {game}"] / row[f"atari {game}"] for row in rows)
        result[f"times as fast as AtariVectorEnv, {game}"] = dict(
            zip(("min", "median", "max"), (ratios[0], statistics.median(ratios), ratios[-1]), strict=True)
        )
    result["bare_steps_per_second"] = 1e6 / statistics.median(row["bare"] for row in rows)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
