"""What a run shows while it trains: a line of progress on a terminal or in a log, and rows of metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from surefoot.algorithm.callback import Callback
from surefoot.algorithm.update import METRIC_NAMES
from surefoot.errors import OURS, Fault, Interrupted, note, said
from surefoot.output import Progress, clock
from surefoot.paths import shown
from surefoot.runs.checkpoint import save
from surefoot.runs.directory import unwritable
from surefoot.runs.evaluation import evaluate_shared
from surefoot.runs.files import identity, replace_file
from surefoot.runs.hooks import Hooks
from surefoot.runs.metrics import Metrics, Row, read
from surefoot.runs.policy_file import BEST, policy_bytes
from surefoot.runs.report_card import NONE_ENDED, STAGES

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks
    from surefoot.runs.mirror import Mirror


FLAT = 20  # iterations without a gradient, or without entropy, before a note says so
OTHERS = 1 << 32  # first episode number of evaluations during training; the closing one counts from 0


CENTERED = "only time limits end episodes here: rewards are learned from less their mean, {:.3g}"


class Reporter(Callback):
    """The loop's callback: metrics and progress on rank 0, checkpoints on all."""

    def __init__(
        self,
        cfg: Config,
        run_dir: Path,
        ranks: Ranks,
        state: State,
        started: float,
        quiet: bool,
        hooks: Hooks | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.cfg, self.run_dir, self.ranks, self.hooks = cfg, run_dir, ranks, hooks or Hooks()
        self.mirror = mirror  # on rank 0 of a run at an address
        self.ended = False  # by the user's own stop condition
        self.stop = self.save_now = self.in_play = False
        """set by signal handlers; `in_play` while environments are stepped"""
        self.signal = 0  # the one that asked to stop
        self.fault: Fault | None = None
        """the error that ends the run on this rank"""
        self.place = identity(run_dir)
        self.flat = 0
        """how many iterations in a row have learned nothing"""
        self.state, self.before, self.started = state, state.seconds, started
        self.saved = self.shown = perf_counter()
        self.sent, self.steps = 0, state.steps
        self.shift, self.progress = state.reward_shift, Progress(quiet)
        self.progress.last = self.saved  # a line has just said what begins
        tried = [row.get("evaluation") for row in read(run_dir) if row["step"] <= state.steps] if not ranks.rank else []
        self.best = max((score for score in tried if score is not None), default=-math.inf)
        """best mean score of the evaluations so far, whose policy rank 0 keeps in a file"""
        self.metrics = Metrics(run_dir, state.steps) if ranks.rank == 0 else None

    def should_stop(self, state: State) -> bool:
        """Whether the run is over: planned end, time limit, score reached, or asked to stop."""
        self.sent, self.steps = self.ranks.sent, state.steps  # before this iteration
        full = len(state.recent_episodes) == state.recent_episodes.maxlen and state.mean_score() >= self.cfg.stop_at
        if self.mirror and self.mirror.fault:
            self.stop, self.fault = True, self.mirror.fault
        over = state.progress(self.cfg) >= 1 or state.seconds >= self.cfg.max_seconds
        return self.stop or self.ended or full or over

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While environments are stepped a signal interrupts the rollout: a step may be slow, or hang."""
        self.in_play = True
        try:
            if self.stop:  # the signal came just before
                raise Interrupted
            yield
        finally:
            self.in_play = False

    def status(self) -> str:
        """What the run is doing, for a sign of life."""
        state, total = self.state, self.state.num_steps(self.cfg)
        where = state.envs.heartbeat.activity()
        step = f"step {state.envs.steps} of {total}{where and f' ({where})'}"
        text = f"rollout {state.iteration + 1}, {step if self.in_play else 'learning from it'}"
        text = text if state.progress(self.cfg) < 1 else "finishing"
        ended = "" if state.recent_episodes else f" · {NONE_ENDED}"
        return f"{min(1, state.progress(self.cfg)):4.0%} step {state.steps:,} · {text}{ended}"

    def say(self, text: str) -> None:
        """Print a line, on rank 0."""
        if self.ranks.rank == 0:
            self.progress.show(text, True)

    def halt(self, number: int) -> None:
        """Stop after a signal: at the end of the iteration, or at once where environments are being stepped."""
        self.stop, self.signal = True, number
        if self.in_play:
            raise Interrupted

    def on_dropped_rollout(self, cause: BaseException | None) -> None:
        """A rollout was broken off, on this rank by `cause`."""
        self.stop = True
        if isinstance(cause, Fault):
            self.fault = cause

    def should_save(self) -> bool:
        """Whether the last checkpoint is old enough, or a signal has asked for one."""
        return self.save_now or perf_counter() - self.saved >= self.cfg.save_every

    def on_save(self, state: State, last: bool = False) -> None:
        """Save a checkpoint and policy.safetensors; a failure is reported and tried again, the `last` one raises."""
        if self.metrics is not None:
            self.metrics.show()
        gone = self.ranks.rank == 0 and identity(self.run_dir) != self.place
        if gone:
            self.fault = Fault(f"the run directory '{shown(self.run_dir)}' is gone, and what it held is lost")
        if self.ranks.any(gone):
            self.stop = True
            return
        try:
            data = save(state, self.cfg, self.run_dir, self.ranks)
            if self.ranks.rank == 0:
                replace_file(self.run_dir / "policy.safetensors", data)
            if self.mirror:
                self.mirror.save()
        except OSError as error:
            if last:
                raise
            note(f"{unwritable(error, self.run_dir)}; it goes on and tries again")
        self.saved, self.save_now = perf_counter(), False

    def evaluate(self, state: State, played: int) -> float:
        """The averaged policy's mean score every `eval_every` steps, else NaN; the best policy is kept in a file."""
        cfg = self.cfg
        if not cfg.eval_every or state.steps // cfg.eval_every == (state.steps - played) // cfg.eval_every:
            return float("nan")
        policy, first = state.ema_policy(), OTHERS + state.iteration * cfg.eval_games
        episodes = range(first, first + cfg.eval_games)
        result = evaluate_shared(policy, cfg, episodes, state, self.ranks, self.progress.show, self.collecting)
        state.envs.heartbeat.rest()
        if not state.envs.envs:
            self.on_dropped_rollout(Fault("the environments were closed for an evaluation and cannot be made again"))
            return float("nan")
        state.snapshot_envs()  # those that were closed meanwhile may have begun new episodes
        if result is None:
            return float("nan")
        if result.mean >= self.best and self.ranks.rank == 0:
            try:
                data = policy_bytes(policy, cfg, state.steps, state.returns)
                replace_file(self.run_dir / BEST, data)
                self.best = result.mean
            except OSError as error:
                note(f"{unwritable(error, self.run_dir)}; the best policy stays the one before")
        return result.mean

    def on_iteration(self, state: State, rollout: Rollout, returns: Tensor, metrics: Tensor, learn_s: float) -> None:
        """Write the iteration's row and show it."""
        now = perf_counter()
        state.seconds = self.before + now - self.started
        error = returns - rollout.value
        if rollout.valid is not None:
            returns, error = returns[rollout.valid], error[rollout.valid]
        sums = [m for x in (returns.double(), error.double()) for m in (x.sum(), x.square().sum())]
        sums.append(sums[0].new_tensor(error.numel()))
        *sums, count = self.ranks.all_reduce_mean(torch.stack(sums)).tolist()
        mean, square, error_mean, error_square = (x / max(count, 1.0) for x in sums)
        played = state.steps - self.steps
        score = self.evaluate(state, played)
        hook_metrics = [self.call(name, metric, rollout, state) for name, metric in self.hooks.metrics.items()]
        if hook_metrics:
            hook_metrics = self.ranks.all_reduce_mean(torch.tensor(hook_metrics, dtype=torch.float64)).tolist()
        if self.metrics is None:
            return
        spent, self.shown = now - self.shown, now
        lengths = [e.length for e in state.recent_episodes]
        spread = square - mean**2
        scores = [e.score for e in rollout.episodes]
        row: Row = {
            "step": state.steps,
            "iteration": state.iteration,
            "seconds": round(state.seconds, 3),
            "episodes": state.episodes,
            "return_mean": state.mean_score(),
            "return_window": len(state.recent_episodes),
            "return_iteration": sum(scores) / len(scores) if scores else float("nan"),
            "length_mean": sum(lengths) / len(lengths) if lengths else float("nan"),
            "evaluation": score,
            "steps_per_second": round(played / spent, 1),
            "env_s": round(rollout.env_s, 4),
            "act_s": round(rollout.act_s, 4),
            "learn_s": round(learn_s, 4),
            "sent_bytes": self.ranks.sent - self.sent,
            "learning_rate": state.learning_rate,
            "explained_variance": 1 - (error_square - error_mean**2) / spread if spread > 0 else float("nan"),
            "ratio_drift_first": float(metrics[0, METRIC_NAMES.index("ratio_drift")]),
        }
        if state.kl_coef:
            row["kl_coef"] = state.kl_coef
        if state.reward_shift:
            row["reward_shift"] = state.reward_shift
            if not self.shift:
                self.progress.show(CENTERED.format(state.reward_shift), True)
        self.shift = state.reward_shift
        row |= {name: float(metrics[:, i].mean()) for i, name in enumerate(METRIC_NAMES)}
        row |= dict(zip(self.hooks.metrics, hook_metrics, strict=True))
        self.metrics.add(row)
        if self.hooks.stop is not None and not self.fault:
            self.ended = self.call("stop", self.hooks.stop, dict(row)) > 0
        self.flat = self.flat + 1 if not row["grad_norm"] or abs(row["entropy"]) < 1e-4 else 0
        if self.flat == FLAT:
            note(why_flat(row))
        self.progress.show(self.line(row, state))

    def call(self, name: str, function: Callable[..., Any], *about: Any) -> float:
        """What a function of the user's gives, as a number; where it fails the run is saved and ends with its Fault."""
        try:
            value = function(*about)
            return math.nan if value is None else float(value)
        except OURS:
            raise
        except BaseException as error:
            self.on_dropped_rollout(
                Fault(f"the function '{name}' failed after {self.state.steps:,} steps: {said(error)}")
            )
            return math.nan

    def line(self, row: Row, state: State) -> str:
        """The progress line: step, score, speed, time left, share of each stage."""
        done = max(state.progress(self.cfg), state.seconds / self.cfg.max_seconds, 1e-9)
        left = max(0.0, state.seconds * (1 / done - 1))
        busy = row["env_s"] + row["act_s"] + row["learn_s"]
        shares = " ".join(f"{name} {row[key] / busy:.0%}" for name, key in STAGES)
        score = f"score {row['return_mean']:.1f} (mean of last {row['return_window']})"
        return (
            f"{min(1, done):4.0%} step {row['step']:,} · {score if state.recent_episodes else NONE_ENDED} · "
            f"{row['steps_per_second']:,.0f} steps/s · {clock(state.seconds)} gone, {clock(left)} left · {shares}"
        )

    def close(self) -> None:
        """Close the files."""
        if self.metrics is not None:
            if self.progress.terminal:
                self.progress.write("")
            self.metrics.close()


def why_flat(row: Row) -> str:
    """What to do about a policy that no longer learns."""
    if row["grad_norm"]:
        return (
            f"the policy has played the same actions for {FLAT} iterations (entropy {row['entropy']:.0e}): "
            "it cannot find anything better; give it a larger --entropy.coef or a lower learning rate"
        )
    return (
        f"nothing was learned for {FLAT} iterations: every advantage is 0, no action was better than another; "
        "where the task is not solved, take more --num-envs or --num-steps, so that some rewards differ"
    )
