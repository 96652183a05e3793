"""The outer loop, from REINFORCE to PPO.

GAE, returns: `advantages`; ratio, clip: `objectives.ClippedSurrogate`; policy loss, value loss, entropy bonus:
`update.ppo_loss`; gradient clipping, optimizer: `update.update`; learning rate: `schedules`; KL early stop: here.
"""

from __future__ import annotations

import json
from time import perf_counter
from typing import TYPE_CHECKING

from surefoot.algorithm.advantages import compute_advantages
from surefoot.algorithm.rollout import collect_rollout, gather_if_small
from surefoot.algorithm.running_stats import update_running_stats
from surefoot.algorithm.schedules import annealed
from surefoot.algorithm.trpo import update_rule
from surefoot.algorithm.update import UpdateInfo, flush_denormals, update_metrics
from surefoot.envs.interface import Episode

if TYPE_CHECKING:
    from surefoot.algorithm.callback import Callback
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks


def train(cfg: Config, state: State, ranks: Ranks, callback: Callback) -> State:
    """Collect a rollout, compute advantages, update for several epochs, repeat.

    REINFORCE and PPO differ in `cfg.advantage`, `normalize`, `objective`, `entropy`, `value_coef`, `num_epochs` alone.
    """
    batches, update = update_rule(cfg)  # `batches` and `update` of update.py, or TRPO's of trpo.py
    while not ranks.any(callback.should_stop(state)):
        collected = collect_rollout(cfg, state, ranks, callback)  # the current policy acts, [T, N]
        if collected is None:
            break
        start = perf_counter()
        rollout, learner_group = gather_if_small(collected, cfg, state, ranks)  # who shares minibatches
        advantage, returns, advantage_std = compute_advantages(rollout, cfg, state, learner_group)  # [T, N]
        # clip range, entropy and KL coefficient of this iteration; the learning rate changes in every update
        annealed_cfg, updates = annealed(cfg, state.iteration, state.progress(cfg), state.kl_coef), list[UpdateInfo]()
        with flush_denormals():
            for batch in batches(rollout, advantage, returns, cfg, state, learner_group):  # epochs x minibatches, [B]
                updates.append(update(state, batch, annealed_cfg, learner_group))  # one step down ppo_loss's gradient
                if updates[-1].kl > cfg.target_kl:  # early stop; KL(old || new) before this step
                    break
        metrics = update_metrics(updates, state, annealed_cfg, learner_group)
        if learner_group is not ranks:  # each rank has learned from the whole rollout: the same up to rounding
            ranks.broadcast(state.flat.data)
        state.advantage_std = advantage_std
        rollout.episodes = finish_iteration(state, collected, cfg, ranks)
        callback.on_iteration(state, rollout, returns, metrics, perf_counter() - start)
        if ranks.any(callback.should_save()):
            callback.on_save(state)
        del collected, rollout, batch  # images are large: the next rollout is collected without this one in memory
    return state


def finish_iteration(state: State, rollout: Rollout, cfg: Config, ranks: Ranks) -> list[Episode]:
    """Update running statistics, counters and the parameters' EMA; returns the episodes that all ranks finished."""
    update_running_stats(state, rollout, cfg, ranks)
    state.memory = None if rollout.memory is None else rollout.memory[-1]
    state.snapshot_envs()
    state.iteration += 1
    state.update_ema(cfg.ema_decay)
    mine = rollout.reward.numel(), int(rollout.terminations.sum()), rollout.episodes
    told = ranks.all_gather_bytes(json.dumps(mine).encode())
    steps, terminations, parts = zip(*map(json.loads, told), strict=True)
    episodes = sorted((Episode(*e) for part in parts for e in part), key=lambda e: (e.at, e.env))
    state.steps += sum(steps)
    state.terminations += sum(terminations)
    state.ends_often |= state.terminations * cfg.noise_rarity >= state.steps
    state.episodes += len(episodes)
    state.recent_episodes.extend(episodes)
    return episodes
