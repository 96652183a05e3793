"""One rank of two small runs in float64 that writes down what it played and learned: `python twin.py OUT`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import worlds  # noqa: F401 (registers the environments)
from surefoot.algorithm import rollout
from surefoot.algorithm.advantages import GAE, FutureReturn, OverBatch, OverGames, OverMinibatch
from surefoot.algorithm.callback import Callback
from surefoot.algorithm.objectives import AdaptivePenalty, ClippedSurrogate, Entropy, Surrogate, TrustRegion
from surefoot.algorithm.rewards import ScaledReward
from surefoot.algorithm.schedules import FixedRate
from surefoot.algorithm.state import flat_parameters, initial
from surefoot.algorithm.train import train
from surefoot.config import Config
from surefoot.envs import vector
from surefoot.envs.gym import Gymnasium
from surefoot.models.memory import GRU, LSTM
from surefoot.models.networks import MLP, SmallCNN
from surefoot.models.optimizers import Adam, Muon
from surefoot.parallel.launch import die_with_launcher, exit_now
from surefoot.parallel.ranks import Gloo, SharedMemory, join

CFG = Config(
    env=Gymnasium("worlds:Catch-v0"),
    network=MLP((16,)),
    num_envs=8,
    num_steps=(16,),
    advantage=GAE(0.95, 0.9),
    objective=ClippedSurrogate(0.2),
    num_epochs=2,
    minibatch_size=32,
    learning_rate=FixedRate(1e-2),
    total_steps=0,
    total_iterations=3,
)


# The lesson's way: trajectories from the start, whose length is decided by the game that ends first, on any rank.
LESSON = replace(
    CFG,
    env=Gymnasium("CartPole-v1"),
    num_steps=(15, 30),
    from_reset=True,
    minibatch_size=0,
    advantage=FutureReturn(0.9),
    normalize=OverGames(),
    total_iterations=6,
)
RUNNING = replace(
    CFG, network=MLP((16,), running=True), reward=ScaledReward(), normalize=OverBatch(memory=0.9), recompute=True
)
CONTROL = replace(RUNNING, env=Gymnasium("worlds:Target-v0"))
PENALTY = replace(CFG, objective=Surrogate(), kl_penalty=AdaptivePenalty(1.0, 1e-4))
# As `pong` learns: convolutions over pictures, and Muon.
IMAGES = replace(CFG, env=Gymnasium("makers:Image"), network=SmallCNN((4, 8), hidden=32), optimizer=Muon(units=16))
IMAGES = replace(IMAGES, fit_value_bias=True)
TRPO = replace(CFG, objective=TrustRegion(), entropy=Entropy(0.01))
TRPO_IMAGES = replace(IMAGES, objective=TrustRegion(), optimizer=Adam())
MEMORY = replace(IMAGES, memory=GRU(6), recompute=True)
EVERYTHING = ("running", "whole")  # every rank learns from all games; in the others each gives its share of a minibatch
WHOLE = replace(CONTROL, normalize=OverMinibatch())
KINDS = {
    "continuing": CFG,
    "penalty": PENALTY,
    "trpo": TRPO,
    "trpo-images": TRPO_IMAGES,
    "lesson": LESSON,
    "running": RUNNING,
    "within": WHOLE,
    "images": IMAGES,
    "memory": MEMORY,
    "memory of vectors": replace(CONTROL, memory=LSTM(6, length=2)),
    "control": CONTROL,
    "whole": WHOLE,
}


class Notebook(Callback):
    """A callback that keeps every iteration's rollout, gradient and parameters."""

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.notes = cfg, dict[str, torch.Tensor]()

    def should_stop(self, state) -> bool:  # type: ignore[no-untyped-def]
        return state.progress(self.cfg) >= 1

    def on_iteration(self, state, rollout, returns, metrics, learn_s) -> None:  # type: ignore[no-untyped-def]
        for name in ("obs", "action", "reward", "terminated"):
            self.notes[f"{state.iteration}/{name}"] = getattr(rollout, name).clone()
        self.notes[f"{state.iteration}/gradient"] = state.gradient[state.optimizer.part].clone()
        self.notes[f"{state.iteration}/parameters"] = state.flat.detach().clone()
        measured = [x.double().flatten() for x in state.policy.preprocess.state_dict().values()]
        counted = *state.return_moments, state.advantage_std, state.kl_coef, state.terminations
        self.notes[f"{state.iteration}/moments"] = torch.cat([*measured, torch.tensor(counted).double()])
        self.notes[f"{state.iteration}/scores"] = torch.tensor([e.score for e in state.recent_episodes])

    def on_dropped_rollout(self, cause: BaseException | None) -> None:
        raise AssertionError(cause)


def main(kind: str, cfg: Config, out: Path, ranks: Any = None) -> None:
    torch.set_num_threads(1)
    ranks = ranks or join()
    state = initial(cfg, ranks)
    state.policy.double()
    vars(state).update(flat_parameters(state.policy, cfg, ranks), memory=state.policy.no_memory(len(state.envs)))
    notebook = Notebook(cfg)
    train(cfg, state, ranks, notebook)
    if ranks.count > 1 and sys.platform == "linux":  # all ways of exchanging are really taken
        together = os.environ.get("LOCAL_WORLD_SIZE") == str(ranks.count)
        assert type(ranks) is (SharedMemory if together else Gloo)
        assert (len(state.gradients) > 1) == (together and not state.policy.hidden)
    save_file(notebook.notes, out / f"{kind}-{ranks.count}-{ranks.rank}.safetensors")


def one_is_cut(way: str, out: Path) -> None:
    """Rank 0 ends its rollout once rank 1 has played 8 steps of 16, and rank 1 goes on once rank 0 has ended its."""
    if way == "sockets":
        os.environ.pop("LOCAL_WORLD_SIZE")
    ranks, rollouts, step = join(), [0], vector.EnvVector.step

    def waits(self: vector.EnvVector, *args: Any, **kwargs: Any) -> Any:
        iteration, now = divmod(rollouts[0], 8) if ranks.rank else divmod(rollouts[0], 16)
        if ranks.rank == 0 and now == 15:
            ranks.store.wait([f"half/{iteration}"])
        done = step(self, *args, **kwargs)
        if ranks.rank == 1 and now == 7:
            ranks.store.set(f"half/{iteration}", b"")
            while not ranks.is_cut(iteration):
                os.sched_yield()
        rollouts[0] += 1
        return done

    vector.EnvVector.step = waits  # type: ignore[method-assign]
    rollout.MIN_SHARE = 0
    main(way, replace(CONTROL, num_steps=(16,), sync_fraction=0.5), out, ranks)


def rounded(_: str, out: Path) -> None:
    """By sockets, with gradients sent as bfloat16."""
    os.environ.pop("LOCAL_WORLD_SIZE")
    rollout.MIN_SHARE = 0
    main("rounded", CFG, out, join(bf16=True))


if __name__ == "__main__":
    die_with_launcher()
    for kind, cfg in KINDS.items():
        rollout.MIN_SHARE = 128 if kind in (*EVERYTHING, "memory of vectors") else 0
        if kind == "control":
            del os.environ["LOCAL_WORLD_SIZE"]  # as if on several machines: by sockets
        main(kind, cfg, Path(sys.argv[1]))
    exit_now(0)
