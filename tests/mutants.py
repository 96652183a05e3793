# ruff: noqa: E501 (a fault a line)
"""Whether the tests notice faults in the mathematics: `make mutants` plants them, one at a time, and runs the tests.

Each fault is a replacement of a string that occurs exactly once in a file of src/surefoot: the list cannot rot. Every
one has to fail a test; prints those that survive, and ends with exit code 1 if there are any. Not part of `make test`.

    python tests/mutants.py [WORDS]    only faults whose file or text contains one of the words
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 300  # seconds; a fault that hangs has been noticed
ROOT = Path(__file__).parent.parent


ACTS = "test_fast_mlp.py::test_it_acts_and_evaluates_as_the_plain_path"
TWIN = "test_fast_mlp.py::test_the_gradient_is_that_of_the_plain_path"
AVERAGE = "test_state.py::test_the_policy_that_is_kept_is_a_moving_average_and_learning_goes_on_from_the_newest"
STEPS = "test_memory.py::test_whole_sequences_are_what_single_steps_are_and_have_no_padding"
SEES = "test_memory.py::test_learning_sees_what_acting_saw"
SUCCESSOR = "test_memory.py::test_the_value_of_a_true_successor_is_that_of_the_memory_of_that_moment"
ENDING = "test_memory.py::test_what_came_before_an_ending_changes_nothing_after_it"
NEXT_ROLLOUT = "test_memory.py::test_a_rollout_begins_with_what_the_last_one_remembered_unless_its_episode_ended"
CRASHED = "test_memory.py::test_an_environment_that_crashed_begins_without_a_memory"
MINIBATCHES = (
    "test_memory.py::test_minibatches_are_whole_sequences_of_every_environment_and_every_row_is_learned_from_once"
)
SAVED = "test_memory.py::test_a_checkpoint_holds_the_memory"
EVALUATED = "test_memory.py::test_an_evaluation_is_the_same_whatever_is_played_beside_it"
PENALTY = "test_update.py::test_the_penaltys_coefficient_follows_the_divergence_of_all_transitions"
CUT = "test_stragglers.py::test_what_a_cut_rollout_teaches_is_what_a_shorter_one_teaches"
NUMBERS = "test_vector.py::test_the_numbers_in_those_rows_change_nothing"
TWO_RANKS = "test_tasks.py::test_normalised_by_two_ranks_is_normalised_by_one"


class Mutant(NamedTuple):
    """A fault: `old` becomes `new` in `file`; the tests, names of files in tests/ or of one test in them."""

    file: str
    old: str
    new: str
    tests: str


def faults() -> list[Mutant]:
    """All of them."""
    return [
        Mutant(file, old, new, own[0] if own else tests)
        for (file, tests), changes in FAULTS.items()
        for old, new, *own in changes
    ]


# fmt: off
FAULTS: dict[tuple[str, str], list[tuple[str, ...]]] = {
    ("algorithm/advantages.py", "test_credit"): [
        ("reward - shift - forgone(terminated, shift, gamma)", "reward - shift"),
        ("(gamma * shift / (1 - gamma))", "(shift / (1 - gamma))"),
        ("state.return_std, state.reward_shift or 0.0", "state.return_std, 0.0"),
        # off by one in time, endings
        ("total[t] += decays[t] * total[t + 1]", "total[t] += decays[t + 1] * total[t + 1]"),
        ("in reversed(range(len(total) - 1))", "in reversed(range(1, len(total) - 1))"),
        ("discounted_sum(reward, gamma * (~ended)", "discounted_sum(reward, gamma * (~ended | True)"),
        ("gamma ** torch.arange(len(reward),", "gamma ** torch.arange(1, len(reward) + 1,"),
        ("total[t].where(ended[t - 1], total[t - 1])", "total[t].where(ended[t], total[t - 1])"),
        # TD error and GAE
        ("(~terminated).to(value.dtype) - value", "(~terminated).to(value.dtype) + value"),
        ("next_value * (~terminated).to(value.dtype)", "next_value"),
        ("next_value * (~terminated)", "next_value * terminated"),
        ("gamma * gae_lambda * (~ended)", "gamma * gae_lambda * (~terminated)"),
        ("gamma * gae_lambda * (~ended)", "gae_lambda * (~ended)"),
        ("gamma * gae_lambda * (~ended)", "gamma * (~ended)"),
        ("td_error(reward, value, next_value, terminated, gamma)\n    return", "td_error(reward, value, next_value, ended, gamma)\n    return"),
        ("r.ended, self.gamma, self.gae_lambda)", "r.ended, self.gae_lambda, self.gamma)"),
        ("gae(r.reward, r.value, r.next_value,", "gae(r.reward, r.next_value, r.value,"),
        ("r.terminated, r.ended, self", "r.ended, r.ended, self"),
        ("r.terminated, r.ended, self", "r.truncated, r.ended, self"),
        ("return advantage, advantage + r.value", "return advantage, advantage"),
        ("return advantage, advantage + r.value", "return advantage, advantage + r.next_value"),
        ("episode_return(rollout.reward, rollout.ended, self.gamma)", "future_return(rollout.reward, rollout.ended, self.gamma)"),
        ("future = future_return(rollout.reward, rollout.ended,", "future = future_return(rollout.reward, rollout.terminated,"),
        # normalisation
        ("centred.square().mean(dim, keepdim=True)", "centred.square().sum(dim, keepdim=True)"),
        (".sqrt().clamp(min=min_std)", ".sqrt()"),
        ("max(min_std, self.floor)", "min_std"),
        ("max(min_std, self.floor)", "min_std + self.floor"),
        ("keepdim=True).sqrt().clamp", "keepdim=True).clamp"),
        ("centred = x - x.mean(dim, keepdim=True)", "centred = x"),
        ("_normalize(advantage, (1,))", "_normalize(advantage, (0,))"),
        ("tuple(range(advantage.ndim)), min_std)", "(1,), min_std)"),
        ("self.memory * std**2 + (1 - self.memory) * new**2", "(1 - self.memory) * std**2 + self.memory * new**2"),
        ("self.memory * std**2 + (1 - self.memory) * new**2", "self.memory * std + (1 - self.memory) * new"),
        ("advantage.std(correction=0)", "advantage.std()"),
        ("return centred / (std + 1e-8)", "return centred / (std * std + 1e-8)", "test_tasks.py::test_each_minibatch_is_normalised_for_itself"),
        ("middle = float(mean(advantage.mean()))", "middle = float(advantage.mean())", TWO_RANKS),
        ("math.sqrt(mean((centred * centred).mean()))", "math.sqrt((centred * centred).mean())", TWO_RANKS),
        # what a rollout's advantages are made of
        ("reward=reward.to(rollout.reward)", "reward=rollout.reward"),
        ("cfg.reward(rollout.reward - shift, std)", "cfg.reward(rollout.reward - shift)"),
        ("cfg.advantage.gamma) / std", "cfg.advantage.gamma)"),
        ("of_all_envs, valid, state.advantage_std)", "of_all_envs, valid, 0.0)"),
        ("of_all_envs, valid, state.advantage_std)", "of_all_envs, valid, std)"),
        ("of_all_envs = ranks.gather_columns(advantage)", "of_all_envs = torch.cat([advantage] * ranks.count, 1)"),
        ("state.advantage_std)), returns, std", "state.advantage_std)), advantage, std"),
    ],
    ("algorithm/objectives.py", "test_objectives"): [
        ("(logp - logp_old).sum(0).exp()", "(logp - logp_old).mean(0).exp()"),
        ("(logp - logp_old).sum(0).exp()", "(logp_old - logp).sum(0).exp()"),
        ("ratio.sum() ** 2 / (ratio * ratio).sum()", "(ratio * ratio).sum() / ratio.sum() ** 2"),
        ("return (value - returns).square()", "return (value - returns).abs()"),
        ("squared_error(value, returns).maximum(", "squared_error(value, returns).minimum("),
        ("value_old + (value - value_old).clamp(", "returns + (value - value_old).clamp("),
        ("clamp(-clip_range, clip_range)", "clamp(max=clip_range)"),
        ("(ratio - 1).abs() > clip_range", "ratio - 1 > clip_range"),
        ("(ratio - 1).abs() > clip_range", "(ratio - 1).abs() < clip_range"),
        ("return logp * advantage", "return -logp * advantage"),
        ("return logp * advantage", "return logp.exp() * advantage"),
        ("(logp - logp_old).exp()\n        return ratio * advantage\n", "(logp_old - logp).exp()\n        return ratio * advantage\n"),
        ("(logp - logp_old).exp()\n        clipped", "(logp_old - logp).exp()\n        clipped"),
        ("(ratio * advantage).minimum(clipped * advantage)", "(ratio * advantage).maximum(clipped * advantage)"),
        ("(ratio * advantage).minimum(clipped * advantage)", "clipped * advantage"),
        ("clamp(1 - self.clip_range, 1 + self.clip_range)", "clamp(max=1 + self.clip_range)"),
        ("clamp(1 - self.clip_range, 1 + self.clip_range)", "clamp(min=1 - self.clip_range)"),
        ("clamp(1 - self.clip_range, 1 + self.clip_range)", "clamp(0.8, 1.2)"),
        ("self.clip_range * self.decay**iteration", "self.clip_range * self.decay**(iteration + 1)"),
        ("self.clip_range * self.decay**iteration", "self.clip_range * self.decay"),
        ("self.decay**iteration * linear(self.end_factor, progress)", "self.decay**iteration", "test_tasks.py::test_the_clip_range_falls_in_a_straight_line"),
        ("self.coef * new.entropy()", "-self.coef * new.entropy()"),
        ("self.coef * new.entropy()", "self.coef * old.entropy()"),
        ("linear(self.end_factor, progress / self.until)", "linear(self.end_factor, progress * self.until)"),
        ("self.coef * new.cross_entropy(old)", "self.coef * old.cross_entropy(new)"),
        ("self.coef * self.decay**iteration, 1.0)", "self.coef * self.decay, 1.0)"),
        # the relatives
        ("clipped.maximum(self.dual_clip", "clipped.minimum(self.dual_clip"),
        (".where(advantage < 0, clipped)", ""),
        (".where(advantage < 0, clipped)", ".where(advantage > 0, clipped)"),
        ("ratio * advantage - advantage.abs()", "ratio * advantage + advantage.abs()"),
        ("ratio * advantage - advantage.abs()", "ratio * advantage - advantage"),
        ("(2 * self.ratio_range)", "self.ratio_range"),
        ("self.coef * new.kl_from(old)", "self.coef * old.kl_from(new)"),
        ("self.coef * new.kl_from(old)", "-self.coef * new.kl_from(old)"),
        ("kl > 1.5 * self.desired_kl", "kl > self.desired_kl"),
        ("kl < self.desired_kl / 1.5", "kl < self.desired_kl"),
        ("2.0 if kl > 1.5 * self.desired_kl else 0.5 if kl <", "0.5 if kl > 1.5 * self.desired_kl else 2.0 if kl <"),
        ("coef * factor))", "self.initial * factor))"),
    ],
    ("algorithm/schedules.py", "test_update"): [
        ("(at - k) * (self.rates[min(k + 1, last)] - self.rates[k])", "(at - k) * self.rates[k]"),
        ("self.initial * max(0.0, 1 - progress)", "self.initial * max(0.0, progress)"),
        ("self.initial * max(0.0, 1 - progress)", "learning_rate * max(0.0, 1 - progress)"),
        ("1.5 if kl < target / 2 else 1 / 1.5 if kl > target * 2", "1.5 if kl > target * 2 else 1 / 1.5 if kl < target / 2"),
        ("if kl > target * 2", "if kl > target"),
        ("learning_rate * factor))", "self.initial * factor))"),
        ("min(self.cap, max(self.floor, ", "max(self.cap, min(self.floor, "),
        ("self.end_factor ** min(1.0, progress)", "self.end_factor"),
        ("self.end_factor ** min(1.0, progress)", "self.end_factor**progress"),
        ("1 + (end_factor - 1) * min(1.0, progress)", "1 + (1 - end_factor) * min(1.0, progress)"),
        ("1 + (end_factor - 1) * min(1.0, progress)", "1 + (end_factor - 1) * progress", "test_objectives"),
        ('"entropy": cfg.entropy}', "}"),
        ('"objective": cfg.objective, ', ""),
    ],
    ("algorithm/rewards.py", "test_running test_credit"): [
        ("reward.sign()", "reward.abs().sign()"),
        ("(reward / deviation)", "(reward * deviation)"),
        ("clamp(-self.limit, self.limit)", "clamp(max=self.limit)"),
    ],
    ("algorithm/running_stats.py", "test_running"): [
        ("ranks.any(bool(rollout.terminations.any()))", "False"),
        ("elif std > 1e-6 * level", "else"),
        ("if std > level / FAR", "if False"),
        ("start_in_flat : start_in_flat + parameter.numel()] = 0.0", "0:0] = 0.0"),
        ("sum(e.score for e in episodes) / sum(e.length", "max(e.score for e in episodes) / sum(e.length"),
        ("state.return_moments = 0.0, 0.0, 0.0", "pass"),
        ("parameter.zero_()", "pass"),
        ("and cfg.reward.center and", "and"),
        ("cfg.advantage.gamma < 1 and cfg", "cfg"),
        ("np.square(columns - mean[:, None]).sum(1)", "np.square(columns - mean[:, None]).mean(1)"),
        ("(~ended[:-1]).double()", "(~ended[1:]).double()"),
        ("reward[0] += gamma * before", "reward[0] += before"),
        ("state.running_return[list(rollout.begun)] = 0.0", "pass"),
        ("total[-1] * ~ended[-1]", "total[-1]"),
        ("decay = gamma * torch.cat", "decay = torch.cat"),
        ("cfg.advantage.gamma, state.running_return)", "cfg.advantage.gamma, 0 * state.running_return)"),
        ("new.kl_from(old).double()", "old.kl_from(new).double()", PENALTY),
        ("valid.flatten().to(kl)", "torch.ones_like(kl)", PENALTY),
    ],
    ("algorithm/state.py", AVERAGE): [
        ("max(1 - decay, 10 / (9 + self.iteration))", "max(decay, 10 / (9 + self.iteration))"),
        ("max(1 - decay, 10 / (9 + self.iteration))", "1 - decay"),
        ("math.sqrt(square / count + 1e-8)", "math.sqrt(square + 1e-8)", "test_running"),
        ("math.sqrt(square / count + 1e-8)", "square / count + 1e-8", "test_running"),
        ("int(self.progress(cfg) * len(cfg.num_steps))", "int(self.progress(cfg))", "test_update"),
        ("return max(by_steps, by_iterations)", "return min(by_steps, by_iterations)", "test_update"),
    ],
    ("models/distributions.py", "test_rollout"): [
        ("** (-exponent / 2)", "** -exponent"),
        ("torch.minimum(k, len(k) - k)", "k"),
        ("amplitude.square().mean().sqrt()", "amplitude.mean()"),
    ],
    ("algorithm/rollout.py", "test_rollout"): [
        ("torch.cat((value[1:], value[:1]))", "value.clone()"),
        (".masked_fill(terminated, 0.0)", ""),
        ("enumerate(obs[length])} | finals", "enumerate(obs[length])}"),
        ("for i, last in enumerate(obs[length])}", "for i, last in enumerate(obs[length - 1])}"),
        ("if step.truncated[i] and not step.terminated[i]}", "if step.terminated[i]}"),
        ("= step.reward, step.terminated, step.truncated", "= step.reward, step.truncated, step.terminated"),
        ("torch.from_numpy(truncated[:length]).to(device) & ~ended", "torch.from_numpy(truncated[:length]).to(device)"),
        ("return self.terminated | self.truncated", "return self.terminated & self.truncated", "test_credit test_rollout"),
        ("return self.terminated | self.truncated", "return self.terminated", "test_credit test_rollout"),
        ("self.bootstrap_index, self.terminated)", "self.bootstrap_index, self.truncated)"),
        ("shorter.truncated[-1] = ~shorter.terminated[-1]", "shorter.truncated[-1] = False"),
        ("scores = shorter.reward.double().sum(0)", "scores = shorter.reward.double().mean(0)"),
        (".log_prob(done.action)", ".log_prob(done.action.roll(1, 0))"),
        ("stream(cfg.seed, Purpose.ACTIONS, state.iteration)", "stream(cfg.seed, Purpose.ACTIONS, 0)"),
        ("stream(cfg.seed, Purpose.ACTIONS, state.iteration)", "stream(0, Purpose.ACTIONS, state.iteration)"),
        ("state))[:, ranks.columns(cfg.num_envs)]", "state))[:, : cfg.num_envs // ranks.count]"),
        ("colored(white, noise_color(cfg, state))", "white"),
        ("0.0 if often or state.progress(cfg) >= cfg.noise_until else", "0.0 if often else"),
        ("0.0 if often or state.progress", "0.0 if state.progress"),
        ("(state.ends_often or not state.iteration)", "state.ends_often"),
        ("(state.ends_often or not state.iteration)", "(not state.iteration)"),
        ("if self.valid is None else self.terminated & self.valid", "", "test_running"),
    ],
    # a memory: reset where episodes end, stored at the beginnings of sequences, that of the moment for true successors
    ("algorithm/rollout.py", NEXT_ROLLOUT): [
        ("[*step.final, *step.skipped]", "[*step.skipped]"),
        ("actor.forget(t + 1, over)", "actor.forget(t, over)"),
        ("if length == 0]", "if length < 0]"),
        ("actor.forget(t, lost)", "actor.forget(t, [])", CRASHED),
        ("begins[1:] = self.ended[:-1]", "begins[1:] = self.terminated[:-1]", ENDING),
        ("begins[1:] = self.ended[:-1]", "begins[1:] = self.ended[1:]", ENDING),
        ("begins[::length] = True", "begins[0] = True", MINIBATCHES),
        ("env + t + 0.5)", "env + t - 0.5)", SEES),
        ("order[begins]).to(self.memory", "order[begins] + self.value.shape[1]).to(self.memory", SEES),
    ],
    # a rollout that was cut, beside others that were not
    ("algorithm/rollout.py", CUT): [
        ('rows["truncated"][length - 1] = ~self.terminated[-1]', "pass"),
        ('rows["valid"][length:] = False, True, False', 'rows["valid"][length:] = False, True, True'),
        ("4 * played >= num_steps", "2 * played > num_steps"),
    ],
    ("algorithm/running_stats.py", CUT): [("rollout.valid.sum(0).cpu()", "torch.full((n,), num_steps)", NUMBERS)],
    ("models/actor.py", SUCCESSOR): [
        ("self.after[t][n] for t, n", "self.memory[t][n] for t, n"),
        ("self.after[t][n] for t, n", "self.memory[t + 1][n] for t, n"),
        ("self.after[t] = self.memory[t + 1] = after", "self.after[t], self.memory[t + 1] = after, self.memory[t]"),
    ],
    ("algorithm/train.py", NEXT_ROLLOUT): [("else rollout.memory[-1]", "else rollout.memory[-2]")],
    ("runs/checkpoint.py", SAVED): [("torch.stack(rows)", "0 * torch.stack(rows)")],
    ("runs/evaluation.py", EVALUATED): [("slot.memory = row", "slot.memory = None")],
    ("models/recurrent.py", STEPS): [
        ("np.argsort(step, kind=", "np.argsort(-step, kind="),
        (".index_select(0, torch.from_numpy(longest).to(device))[None]", "[None]"),
        ("index_copy(0, order, h)", "copy_(h)"),
    ],
    ("algorithm/update.py", "test_update"): [
        # minibatches
        ("error if valid is None else error[valid]", "error"),
        ("returns - rollout.value", "returns"),
        ("rollout.value + fit_value_bias(", "rollout.value + 0 * fit_value_bias("),
        ("if not math.isfinite(shift):", "if False:"),
        ("self.weight * len(part.obs) / count", "1.0"),
        ("if epoch and cfg.recompute:", "if epoch < 0 and cfg.recompute:", "test_rollout"),
        ("Purpose.MINIBATCHES, iteration, epoch)", "Purpose.MINIBATCHES, iteration)", "test_rollout"),
        ("Purpose.MINIBATCHES, iteration, epoch)", "Purpose.MINIBATCHES, epoch)", "test_rollout"),
        ("stream(cfg.seed, Purpose.MINIBATCHES", "stream(0, Purpose.MINIBATCHES", "test_rollout"),
        ("(draws.argsort(0)[:, None]", "((0 * draws).argsort(0)[:, None]", "test_rollout"),
        ("order: Any = by_sequence(steps[:, columns]", "order: Any = by_sequence(steps[:, columns][:, ::-1]", "test_rollout"),
        ("order: Any = by_sequence(steps[:, columns]", "order: Any = by_sequence(steps[:, :n]", "test_rollout"),
        ("counts / (share * np.maximum(1, totals))", "counts / np.maximum(1.0, share * totals)", "test_vector.py::test_a_row_that_is_the_only_one_of_all_ranks_counts_alone"),
        ("mean *= mean.new_tensor([u.weight for u in updates])", "mean *= 1.0", "test_vector.py::test_metrics_weigh_the_ranks_as_the_update_does"),
        ("means[0] = torch.full_like(means[0], updates[0].kl)", "pass", "test_trpo.py::test_a_step_obeys_the_bound_and_is_better"),
        # sequences
        (" * length + np.arange(length)[:, None])", " * length + np.arange(length)[::-1, None])", MINIBATCHES),
        ("rollout.begins(length)", "rollout.begins(1)", MINIBATCHES),
        ("rollout.memory.flatten(0, 1)[some", "rollout.memory[1:].flatten(0, 1)[some", MINIBATCHES),
        ("self.each(itemgetter(rows)), sequences=sequences)", "self.each(itemgetter(rows)))", SEES),
        ("[x.take(order, 0) for x in flat]", "[x.take(order, 0) if x.ndim > 1 else x for x in flat]", "test_rollout"),
        ("[x.index_select(0, order) for x in flat[1:]]", "[x if x is flat[4] else x.index_select(0, order) for x in flat[1:]]", "test_rollout"),
        ("len(order) // parts * (k + 1) for k in range(parts)]", "len(order) // parts * (k + 1) for k in range(parts - 1)]", "test_rollout"),
        # the loss
        ("policy_loss = -cfg.objective(", "policy_loss = cfg.objective("),
        ("cfg.objective(logp, batch.logp_old, batch.advantage)", "cfg.objective(logp, batch.logp_old, batch.returns)"),
        ("policy_loss + cfg.value_coef * value_loss", "policy_loss + value_loss"),
        ("policy_loss + cfg.value_coef * value_loss", "policy_loss + (cfg.value_coef if cfg.value_clip == math.inf else 1) * value_loss"),
        ("- cfg.entropy(dist, dist_old)", "+ cfg.entropy(dist, dist_old)"),
        ("- cfg.entropy(dist, dist_old)", "- cfg.entropy(dist_old, dist)"),
        ("return loss.mean(), Samples", "return loss.sum(), Samples"),
        ("if cfg.value_clip < math.inf:\n        value_loss", "if cfg.value_clip == 0:\n        value_loss"),
        ("clipped_squared_error(value, batch.value_old, batch.returns,", "clipped_squared_error(value, batch.returns, batch.value_old,"),
        ("squared_error(value, batch.returns)", "squared_error(value, batch.value_old)"),
        ("if not add:\n        state.gradient", "if add:\n        state.gradient"),
        ("(scale * loss).backward()", "loss.backward()"),
        # the step
        ("scale = share / ranks.count", "scale = share"),
        ("samples.dist.kl_from(samples.dist_old).sum()", "samples.dist_old.kl_from(samples.dist).sum()"),
        ("samples.dist.kl_from(samples.dist_old).sum()", "samples.dist.kl_from(samples.dist_old).mean()"),
        ("kl += scale / len(microbatch.obs)", "kl = scale / len(microbatch.obs)"),
        ("advantage=cfg.normalize.within(batch.advantage, weighted)", "advantage=batch.advantage"),
        ("cfg.max_grad_norm / info.grad_norm", "cfg.max_grad_norm"),
        ("if info.grad_norm > cfg.max_grad_norm", "if info.grad_norm < cfg.max_grad_norm"),
        ("cfg.learning_rate(state.learning_rate, info.kl,", "cfg.learning_rate(cfg.learning_rate.initial, info.kl,"),
        ("state.optimizer.step(state.learning_rate)", "state.optimizer.step(cfg.learning_rate.initial)"),
        ("state.optimizer.step(state.learning_rate)", "state.optimizer.step(-state.learning_rate)"),
        # the metrics
        ("new.kl_from(old), is_clipped", "old.kl_from(new), is_clipped"),
        ("is_clipped(ratio, clip_range)", "is_clipped(ratio, 0.2)"),
        ('"clip_range", 0.2)', '"clip_range", 0.1)'),
        ("new.entropy(), value_loss", "old.entropy(), value_loss"),
        ("(ratio - 1).abs(), ratio, ratio", "(ratio - 1), ratio, ratio"),
        ("ratio_mean.square() / square_mean", "square_mean / ratio_mean.square()"),
        ("ratio_mean.square() / square_mean", "ratio_mean / square_mean"),
        ("(logp - logp_old).exp()", "(logp_old - logp).exp()"),
        ("len(updates), -1).mean(2)", "len(updates), -1).sum(2)"),
        ("[u.grad_norm for u in updates]", "[min(u.grad_norm, cfg.max_grad_norm) for u in updates]"),
    ],
    ("algorithm/trpo.py", "test_trpo"): [
        ("uphill, before = -gradient", "uphill, before = gradient.clone()"),
        ("+ region.damping * vector", ""),
        ("math.sqrt(2 * region.max_kl / curvature) * x", "math.sqrt(region.max_kl / curvature) * x"),
        ("math.sqrt(2 * region.max_kl / curvature) * x", "2 * region.max_kl / curvature * x"),
        ("SHORTER**i * step", "step"),
        ("gain > gain_before and kl <= region.max_kl", "gain > gain_before"),
        ("gain > gain_before and kl <= region.max_kl", "kl <= region.max_kl"),
        ("        flat.copy_(before)\n        kl = 0.0", "        kl = 0.0"),
        ("changed(cfg, value_coef=0.0)", "cfg"),
        ("square / before * direction", "before / square * direction"),
        ("return x, float(x.dot(b))", "return x, float(x.dot(x))"),
        ("residual -= unit.dot(residual) * unit", "pass"),
        ("x += alpha * direction", "x -= alpha * direction"),
        ("if not name.startswith(own)]", "if name.startswith(own)]"),
        ("own = \"critic\" if policy.memory is None else \"critic.\"", "own = \"critic.\""),
        ("own = policy.critic_body if policy.memory is None else None", "own = policy.critic_body"),
        ("own = \"critic\" if policy.memory is None else \"critic.\"", "own = \"critic\""),
        ("policy.hidden and policy.memory is None", "policy.hidden"),
        ("advantage=0 * batch.advantage", "advantage=batch.advantage"),
        ("(share / ranks.count * along)", "along"),
        ("    if cfg.value_coef:\n", "    if True:\n"),
        ("total += share * torch", "total += torch"),
        ("batch.weight * len(part.obs) / count)", "len(part.obs) / count)"),
        ("(small)][::every]", "(small)]"),
    ],
    ("presets.py", "test_presets"): [
        ("if n >= least)", "if n > least)"),
        ("n % (length or 1) == 0", "True"),
    ],
    ("algorithm/train.py", "test_update"): [
        ("updates[-1].kl > cfg.target_kl", "updates[-1].kl < cfg.target_kl", "test_tasks.py::test_a_large_divergence_ends_the_passes"),
        ("update(state, batch, annealed_cfg, learner_group)", "update(state, batch, cfg, learner_group)"),
        ("update_metrics(updates, state, annealed_cfg,", "update_metrics(updates, state, cfg,"),
        ("state.advantage_std = advantage_std", "advantage_std = state.advantage_std"),
        ("mine = rollout.reward.numel(),", "mine = len(rollout.reward),"),
        ("state.terminations += sum(terminations)", "state.terminations += terminations[0]", "test_rollout.py"),
        ("state.ends_often |= state.terminations", "state.ends_often |= state.episodes", "test_rollout.py"),
        ("int(rollout.terminations.sum())", "int(rollout.ended.sum())", "test_rollout.py"),
        ("state.update_ema(cfg.ema_decay)", "state.update_ema(0.0)"),
    ],
    ("algorithm/fast_paths.py", TWIN): [
        ("type(cfg.entropy) is Entropy, cfg", "type(cfg.entropy) is not Entropy, cfg"),
        ("        Surrogate: mlp.grad_surrogate", "        Surrogate: mlp.grad_reinforce"),
    ],
    ("models/distributions.py", "test_actions"): [
        # Bernoulli
        ("torch.where(action == 1, self.params, -self.params)", "torch.where(action == 1, -self.params, self.params)"),
        ("noise < self.params.sigmoid()", "noise > self.params.sigmoid()"),
        ("(1 - p) * F.logsigmoid(-other.params)", "(1 - p) * F.logsigmoid(other.params)"),
        ("old.cross_entropy(self) - old.entropy()", "self.cross_entropy(old) - self.entropy()"),
        ("old.cross_entropy(self) - old.entropy()", "old.entropy() - old.cross_entropy(self)"),
        ("(self.params > 0).long()", "(self.params < 0).long()"),
        # Categorical
        ("noise[..., None] * sums[..., -1:]).sum(-1)", "noise[..., None]).sum(-1)"),
        ("sums[..., :-1] <= noise", "sums[..., :-1] > noise"),
        ("-(self.probabilities() * other.params).sum(-1)", "(self.probabilities() * other.params).sum(-1)"),
        ("-(self.probabilities() * other.params).sum(-1)", "-(other.probabilities() * self.params).sum(-1)"),
        ("(old.probabilities() * (old.params - self.params)).sum(-1)", "(self.probabilities() * (self.params - old.params)).sum(-1)"),
        ("(old.probabilities() * (old.params - self.params)).sum(-1)", "(old.probabilities() * (old.params - self.params)).mean(-1)"),
        ("self.params.argmax(-1)", "self.params.argmin(-1)"),
        # MultiCategorical
        ("enumerate(self.choices)]).sum(0)", "enumerate(self.choices)]).mean(0)", "test_spaces"),
        # DiagonalGaussian
        ("noise.double() + 2.0**-25", "noise.double()", "test_spaces"),
        ("self.mean + self.log_std.exp() * standard", "self.mean + (-self.log_std).exp() * standard", "test_spaces"),
        ("(action - self.mean) * (-self.log_std).exp()", "(action - self.mean) * self.log_std.exp()", "test_spaces"),
        ("-(self.log_std + 0.5 * z * z)", "-(-self.log_std + 0.5 * z * z)", "test_spaces"),
        ("-(self.log_std + 0.5 * z * z)", "-(self.log_std + z * z)", "test_spaces"),
        ("LOG_SQRT_2PI * z.shape[-1]", "LOG_SQRT_2PI", "test_spaces"),
        ("math.log(2 * math.pi) / 2", "math.log(2 * math.pi)", "test_spaces"),
        ("(LOG_SQRT_2PI + 0.5)", "LOG_SQRT_2PI", "test_spaces"),
        ("self.entropy() + other.kl_from(self)", "self.entropy() + self.kl_from(other)", "test_spaces"),
        ("(old.mean - self.mean) * (-self.log_std).exp()", "(old.mean - self.mean) * (-old.log_std).exp()", "test_spaces"),
        ("log_ratio = old.log_std - self.log_std", "log_ratio = self.log_std - old.log_std", "test_spaces"),
        ("torch.expm1(2 * log_ratio)) / 2 - log_ratio", "torch.expm1(2 * log_ratio)) / 2 + log_ratio", "test_spaces"),
    ],
    ("fast/distributions.py", TWIN): [
        ("x -= np.log(np.add.reduce(np.exp(x)))", "x -= np.add.reduce(np.exp(x))"),
        ("self.probabilities * -factor[:, None]", "self.probabilities * factor[:, None]"),
        ("grad[self.at] += factor", "grad[self.at] -= factor"),
        ("row_sum(p * other.params)[:, None] - other.params", "other.params - row_sum(p * other.params)[:, None]"),
        ("row_sum(p * other.params)[:, None] - other.params", "-other.params"),
        ("row_sum(old.probabilities * (old.params - self.params))", "row_sum(self.probabilities * (self.params - old.params))"),
        ("enumerate(self.choices)]).sum(0)", "enumerate(self.choices)]).mean(0)"),
        ("np.exp(-self.log_std)", "np.exp(self.log_std)"),
        ("(action.T.copy().T - self.mean)", "(action.T.copy().T + self.mean)"),
        ("row_sum(self.log_std + 0.5 * self.z * self.z)", "row_sum(-self.log_std + 0.5 * self.z * self.z)"),
        ("-LOG_SQRT_2PI * self.size", "-LOG_SQRT_2PI"),
        ("(self.z * self.precision, self.z * self.z - 1)", "(self.z * self.precision, self.z * self.z)"),
        ("(self.z * self.precision, self.z * self.z - 1)", "(self.z, self.z * self.z - 1)"),
        ("(self.mean - other.mean) * other.precision**2", "(other.mean - self.mean) * other.precision**2"),
        ("ratio = other.precision / self.precision", "ratio = self.precision / other.precision"),
        ("(old.mean - self.mean) * self.precision", "(old.mean - self.mean) * old.precision"),
        ("np.expm1(2 * log_ratio)) / 2 - log_ratio", "np.expm1(2 * log_ratio)) / 2 + log_ratio"),
        ("self.probabilities - old.probabilities", "old.probabilities - self.probabilities"),
        ("1 - shift * shift - ratio * ratio", "1 - shift * shift + ratio * ratio"),
        ("self.precision / old.precision", "old.precision / self.precision"),
        ("return NumpyCategorical.normalize(logits)", "return NumpyCategorical.normalize(output)", ACTS),
        ("return NumpyCategorical.sample(logits, noise)", "return NumpyCategorical.sample(output, noise)", ACTS),
        ("sums[:-1] <= noise", "sums[:-1] > noise", ACTS),
    ],
    ("fast/mlp.py", TWIN): [
        ("return x[0] @ actor.T + actor_bias, x[1]", "return x[1] @ actor.T + actor_bias, x[0]"),
        ("+ critic_bias", "- critic_bias"),
        ("x[:, -masks:] > 0", "x[:, -masks:] <= 0"),
        ("each = dist.log_prob(batch.action), scale / len(value)", "each = dist.log_prob(batch.action), scale"),
        ("batch.advantage) * -each", "batch.advantage) * each"),
        ("batch.logp_old, batch.advantage) *", "batch.logp_old, batch.returns) *"),
        ("grad = grad - each * (cfg.entropy.coef", "grad = grad + each * (cfg.entropy.coef"),
        ("dist if true_entropy else old", "old if true_entropy else dist"),
        ("grad_value * (cfg.value_coef * each)", "grad_value * each"),
        ("value_loss_and_grad(value, batch.value_old, batch.returns,", "value_loss_and_grad(value, batch.returns, batch.value_old,"),
        ("batch.returns, cfg.value_clip)", "batch.returns, math.inf)"),
        ("len(self.log_std) :].sum(0)", "len(self.log_std) :].mean(0)"),
        ("grad_log_std + self.grad_log_std if add else grad_log_std", "grad_log_std"),
        ("gradient += a @ b", "gradient[:] = a @ b"),
        ("1 - inputs[i + 1] * inputs[i + 1]", "1 - inputs[i + 1]"),
        ("grad_input = grad_input @ self.hidden[i][0]", "grad_input = grad_input @ self.hidden[i][0][::-1]"),
        ("np.matmul(grad_output, self.actor[0], grad_input[0])", "np.matmul(grad_output, -self.actor[0], grad_input[0])"),
        ("    return advantage\n", "    return -advantage\n"),
        ("np.exp(logp - logp_old) * advantage\n    return gain", "np.exp(logp_old - logp) * advantage\n    return gain"),
        ("np.exp(logp - logp_old) * advantage\n    return np", "advantage.copy()\n    return np"),
        ("gain > advantage + objective", "gain < advantage + objective"),
        ("objective.clip_range * abs(advantage)", "objective.clip_range * advantage"),
        ("objective.clip_range * abs(advantage)", "0.2 * abs(advantage)"),
        ("grad < objective.dual_clip * np.minimum(advantage, 0)", "grad < objective.dual_clip * advantage"),
        ("grad < objective.dual_clip * np", "grad < -objective.dual_clip * np"),
        ("abs(advantage) * (ratio - 1) / objective.ratio_range)", "abs(advantage) * (ratio - 1) / (2 * objective.ratio_range))"),
        ("ratio * (advantage - abs(advantage)", "ratio * (advantage - advantage"),
        ("grad = grad + each * (cfg.kl_penalty.coef", "grad = grad - each * (cfg.kl_penalty.coef"),
        ("error * error, 2 * error", "error * error, error"),
        ("move = value - value_old", "move = value_old - value"),
        ("move.clip(-clip_range, clip_range)", "move.clip(None, clip_range)"),
        ("x + self.sigma * self.draws[t]", "x - self.sigma * self.draws[t]", ACTS),
        ("np.exp(twin.log_std)", "np.exp(-twin.log_std)", ACTS),
        ("x * self.factor + self.shift", "x * self.factor - self.shift", ACTS),
        ("further, value[count:])", "further, value[:-count])", ACTS),
    ],
    ("models/layers.py", "test_running"): [
        ("mean + gap * (more / total)", "mean + gap * (count / total)"),
        ("square + part_square + gap * gap * (count * more / total)", "square + part_square"),
        ("count = total", "count = more"),
    ],
    ("models/adam.py", "test_optimizers test_update"): [
        ("maximize=False", "maximize=True"),
        ("beta1=0.9,", "beta1=0.999,"),
        ("beta2=0.999", "beta2=0.9"),
        ("weight_decay=0.0", "weight_decay=0.1"),
        ("self.count += 1", "self.count += 2"),
    ],
    ("models/muon.py", "test_optimizers"): [
        ("alpha=-0.2 *", "alpha=0.2 *"),
        ("max(matrix.shape[1:]) ** 0.5", "min(matrix.shape[1:]) ** 0.5"),
        ("lerp_(self.gradient, new).lerp(self.gradient, new)", "lerp_(self.gradient, new)"),
    ],
}
# fmt: on


def plant(mutant: Mutant, folder: Path) -> None:
    """A copy of src/ with the fault."""
    shutil.copytree(ROOT / "src", folder / "src")
    path = folder / "src" / "surefoot" / mutant.file
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()  # it is found current by its second and its size
    path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(tests: str, src: Path, log: Path) -> int:
    """Start a child that runs the tests with the package in `src`; returns its process id.

    It is a fork of this process, which has imported PyTorch and the like but nothing of the package: imports are most
    of the time that a test file takes.
    """
    if child := os.fork():
        return child
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.alarm(TIMEOUT)
        os.environ["PYTHONPATH"] = str(src)
        sys.path.insert(0, str(src))
        import pytest

        names = [Path("tests", *name.split("::", 1)[:1]).with_suffix(".py") for name in tests.split()]
        paths = ["::".join([str(path), *name.split("::")[1:]]) for path, name in zip(names, tests.split(), strict=True)]
        code = int(
            pytest.main(
                ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", *paths]
            )
        )
        found = Path(sys.modules["surefoot"].__file__ or "")
        code = code if found.is_relative_to(src) else 71
        modules = {name: getattr(module, "__file__", None) or str(ROOT) for name, module in sys.modules.copy().items()}
        libraries = [name for name, file in modules.items() if not Path(file).is_relative_to(ROOT / "tests")]
        log.with_name("modules").write_text("\n".join(x for x in libraries if x.split(".")[0] != "surefoot"))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(words: list[str]) -> int:
    """Plant and test; returns the exit code."""
    mutants = [m for m in faults() if not words or any(word in " ".join(m) for word in words)]
    wrong = [m for m in mutants if (ROOT / "src" / "surefoot" / m.file).read_text(encoding="utf-8").count(m.old) != 1]
    for mutant in wrong:
        print(f"{mutant.file}: this does not occur exactly once: {mutant.old!r}")
    if wrong or not mutants:
        return 1
    start, running, survivors = time.perf_counter(), dict[int, tuple[Mutant, Path]](), list[Mutant]()
    with tempfile.TemporaryDirectory() as temporary:
        sound, log = " ".join(dict.fromkeys(test for m in mutants for test in m.tests.split())), Path(temporary, "log")
        if os.waitstatus_to_exitcode(os.waitpid(run_tests(sound, ROOT / "src", log), 0)[1]) != 0:
            print(f"the tests fail without any fault:\n{log.read_text(errors='replace')[-3000:]}")
            return 1
        for name in Path(temporary, "modules").read_text().split():  # whatever the tests need, for all children
            with suppress(Exception):
                import_module(name)
        assert "torch" in sys.modules
        assert "surefoot" not in sys.modules
        waiting = list(mutants)
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                mutant, folder = waiting.pop(0), Path(tempfile.mkdtemp(dir=temporary))
                plant(mutant, folder)
                running[run_tests(mutant.tests, folder / "src", folder / "log")] = mutant, folder
            child, status = os.wait()
            mutant, folder = running.pop(child)
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                print(f"SURVIVES {mutant.file}: {mutant.old!r} -> {mutant.new!r} ({mutant.tests})", flush=True)
            elif code not in (1, -signal.SIGALRM):
                print(
                    f"ERROR {code} {mutant.file}: {mutant.new!r}\n{(folder / 'log').read_text(errors='replace')[-1500:]}"
                )
            if code not in (1, -signal.SIGALRM):
                survivors.append(mutant)
            shutil.rmtree(folder)
    print(f"{len(mutants)} faults, {len(survivors)} unnoticed, {time.perf_counter() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(sys.argv[1:]))
