"""Slow ranks cut their rollouts: what is learned then, and by whom, is what was played."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from safetensors.torch import load_file

import surefoot
from helpers import rows, vector
from surefoot.algorithm.objectives import TrustRegion
from surefoot.algorithm.state import flat_parameters, initial
from surefoot.algorithm.train import train
from surefoot.config import Config
from surefoot.errors import UserError
from surefoot.models.memory import GRU
from surefoot.parallel.launch import launch
from surefoot.parallel.ranks import Alone
from twin import CONTROL, LESSON, Notebook


class Cutting(Alone):
    """Says that enough others have finished when it is asked for the fifth time, which is after step 8 of 16."""

    asked = 0

    def is_cut(self, iteration: int) -> bool:
        self.asked += 1
        return self.asked % 5 == 0


CUT = replace(CONTROL, num_steps=(16,), minibatch_size=0, total_iterations=3, sync_fraction=0.5)


@pytest.mark.parametrize(
    "cfg",
    [
        CUT,
        replace(CUT, memory=GRU(4)),
        replace(CUT, env=vector("ScriptedMixed-both-v0", AutoresetMode.NEXT_STEP)),
        replace(CUT, objective=TrustRegion(), recompute=False, value_coef=0.0),
    ],
    ids=["control", "memory", "next step", "trpo"],
)
def test_what_a_cut_rollout_teaches_is_what_a_shorter_one_teaches(cfg: Config) -> None:
    """The same games go on, with the same steps, episodes, statistics and memory; parameters within 1e-12."""
    ends = []
    for ranks, of_cfg in ((Cutting(), cfg), (Alone(), replace(cfg, num_steps=(8,), sync_fraction=1.0))):
        state = initial(of_cfg, ranks)
        state.policy.double()
        vars(state).update(flat_parameters(state.policy, of_cfg, ranks), memory=state.policy.no_memory(8))
        notebook = Notebook(of_cfg)
        train(of_cfg, state, ranks, notebook)
        ends.append((state, notebook.notes, list(state.recent_episodes)))
        state.envs.close()
    (cut, notes, episodes), (short, short_notes, short_episodes) = ends
    assert (cut.steps, cut.iteration, episodes) == (8 * 8 * 3, 3, short_episodes)
    assert cut.env_snapshot.keys() == short.env_snapshot.keys()
    for name, array in cut.env_snapshot.items():
        np.testing.assert_allclose(array, short.env_snapshot[name], rtol=1e-10, atol=1e-12)
    for name, x in short_notes.items():
        found = notes[name][: len(x)] if name.split("/")[1] in ("obs", "action", "reward") else notes[name]
        if not name.endswith("terminated"):  # the rows after the cut are, and count for nothing
            torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-12)


RANK = """
import sys
from pathlib import Path
import twin
from surefoot.parallel.launch import die_with_launcher, exit_now
die_with_launcher()
twin.one_is_cut(sys.argv[1], Path(sys.argv[2]))
exit_now(0)
"""


@pytest.mark.long
@pytest.mark.parametrize("way", ["memory", "sockets"])
def test_of_two_ranks_the_slow_one_is_cut_and_both_learn_alike(way: str, tmp_path: Path) -> None:
    assert launch([sys.executable, "-c", RANK, way, str(tmp_path)], 2, 4, 300.0) == 0
    ranks = [load_file(tmp_path / f"{way}-2-{rank}.safetensors") for rank in (0, 1)]
    for iteration in (1, 2, 3):
        for name in ("gradient", "parameters", "moments", "scores"):
            key = f"{iteration}/{name}"
            assert torch.equal(ranks[0][key], ranks[1][key]), key
        first = f"{iteration}/terminated"
        assert not ranks[0][first].all(1).any()
        assert ranks[1][first].all(1).tolist() == [False] * 8 + [True] * 8
    count = ranks[0]["3/moments"][0]
    assert count == 3 * 4 * (16 + 8)


@pytest.mark.long
def test_a_run_whose_rollouts_are_cut_is_gone_on_with(small: Config, tmp_path: Path) -> None:
    """Every step is counted once, and none that was not played."""
    half = replace(small, total_steps=small.total_steps // 2, sync_fraction=0.5)
    surefoot.train(half, run_dir=tmp_path / "run", ranks=2, quiet=True)
    surefoot.resume(tmp_path / "run", quiet=True, total_steps=small.total_steps)
    steps = np.diff([0, *(row["step"] for row in rows(tmp_path / "run"))])
    assert (steps >= 64 + 16).all()  # one rank has played all of its share, the other a quarter or more
    assert (steps <= 128).all()
    assert steps.sum() >= small.total_steps


def test_what_cannot_be_is_refused() -> None:
    for share in (0.0, 1.1):
        with pytest.raises(UserError, match="allowed is above 0, at most 1"):
            replace(CONTROL, sync_fraction=share)
    with pytest.raises(UserError, match="1 with from_reset"):
        replace(LESSON, sync_fraction=0.5)
