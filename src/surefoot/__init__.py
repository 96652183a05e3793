"""surefoot: policy gradients that climb without falling off the cliff.

A function for each command that trains, measures or writes something; heavy modules are imported when it is called:

    import surefoot
    run = surefoot.train("pong", seed=1, total_steps=1_000_000)
    print(run.evaluation.mean, surefoot.load(run.path).evaluate(episodes=100).interval)

The loop by hand is in `surefoot.loop`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import gymnasium

    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.commands.benchmark import Speed
    from surefoot.config import Config
    from surefoot.connect.run import GivenEnv, Run
    from surefoot.envs.interface import EnvSpec
    from surefoot.models.policy import Policy
    from surefoot.runs.evaluation import Evaluation
    from surefoot.runs.metrics import Row

    Stop = Callable[[Row], object] | None
    OwnMetrics = Mapping[str, Callable[[Rollout, State], float]] | None

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Run",
    "bench",
    "configure",
    "evaluate",
    "export",
    "export_minari",
    "ladder",
    "load",
    "load_policy",
    "picture",
    "plot",
    "resume",
    "summary",
    "train",
    "train_seeds",
    "tune",
    "video",
]


def __getattr__(name: str) -> Any:
    """`Config` and `Run`, imported when they are asked for."""
    if name == "Config":
        from surefoot.config import Config

        return Config
    if name == "Run":
        from surefoot.connect.run import Run

        return Run
    raise AttributeError(f"module 'surefoot' has no attribute {name!r}")


def configure(
    task: str | Config | gymnasium.Env[Any, Any] | Callable[..., gymnasium.Env[Any, Any]], **fields: Any
) -> Config:
    """The Config that `train` takes for a task, with `fields` changed."""
    from surefoot.presets import find

    return find(task, **fields)


def train(
    task: str | Config | gymnasium.Env[Any, Any] | Callable[..., gymnasium.Env[Any, Any]],
    *,
    run_dir: Path | str | None = None,
    source: Path | str | None = None,
    ranks: int = 0,
    ray: str = "",
    quiet: bool = False,
    stop: Stop = None,
    metrics: OwnMetrics = None,
    track: str | None = None,
    **fields: Any,
) -> Run:
    """Train `task` (or continue the run in `run_dir`), evaluate, write the report card; as `surefoot train`.

    `task`: a name, a Config, a function that makes a Gymnasium environment (a VectorEnv, if it takes `num_envs`; on
    several ranks one that can be imported), or an environment, which is copied (one rank). `fields` change the task's
    Config; `source`: start from this run's policy; `ranks`: processes, 0: one per core where the network sees images,
    otherwise one; `ray`: the Ray cluster on which they are, "local": one that is started here. `stop`: called after
    every iteration with its row of metrics.jsonl (NaN where there is nothing to tell yet), and the run ends where it
    returns True; `metrics`: functions of (rollout, state) that give numbers for that row, by name. On several ranks
    such functions must be ones that can be imported. `objective` may be one of your own, called with (logp, logp_old,
    advantage) and returning what is to be maximised per sample. `track`: "wandb", "mlflow" or "trackio" records the
    metrics, too.
    Raises UserError for a mistake, Fault (a UserError too) for what ends the run. Ctrl-C and SIGTERM save first and
    then do what they always do: KeyboardInterrupt, and the end of the program.
    """
    from surefoot.connect.run import Run
    from surefoot.connect.tracking import beside, chosen
    from surefoot.output import Progress, doing, signs_of_life
    from surefoot.paths import absolute
    from surefoot.presets import find
    from surefoot.runs.hooks import Hooks
    from surefoot.runs.mirror import place
    from surefoot.runs.start import start

    (where, mirror), source = place(run_dir) if run_dir else (None, None), absolute(source) if source else None
    with signs_of_life(Progress(quiet)), doing("getting ready"):
        hooks = Hooks(stop, metrics or {})
        how: dict[str, Any] = {"hooks": hooks, "ray": ray, "beside": beside(chosen(track))}
        return Run(start(find(task, **fields), mirror or where, source, quiet, ranks, **how)[0]).read()


def train_seeds(
    task: str | Config,
    seeds: int = 5,
    *,
    run_dir: Path | str | None = None,
    source: Path | str | None = None,
    ranks: int = 0,
    quiet: bool = False,
    stop: Stop = None,
    metrics: OwnMetrics = None,
    track: str | None = None,
    **fields: Any,
) -> list[Run]:
    """Train several runs that differ only in their seed; `seeds.json` has the summary of their scores."""
    from surefoot.connect.run import Run
    from surefoot.connect.tracking import beside, chosen
    from surefoot.paths import absolute
    from surefoot.presets import find
    from surefoot.runs.hooks import Hooks
    from surefoot.runs.start import start_seeds

    where, source = absolute(run_dir) if run_dir else None, absolute(source) if source else None
    hooks = Hooks(stop, metrics or {})
    folder, _ = start_seeds(
        seeds, find(task, **fields), where, source, quiet, ranks, hooks, beside=beside(chosen(track))
    )
    return [Run(run).read() for run in sorted(folder.glob("seed-*"), key=lambda run: int(run.name[5:]))]


def resume(
    run: Path | str,
    *,
    ranks: int = 0,
    quiet: bool = False,
    trust: bool = False,
    stop: Stop = None,
    metrics: OwnMetrics = None,
    track: str | None = None,
    objective: Callable[..., Any] | None = None,
    **end: Any,
) -> Run:
    """Continue a run; `end` may change where it ends (total_steps, total_iterations, max_seconds, stop_at), device,
    save_every, timeout, env_restarts, skip_updates, eval_every, eval_games, eval_episodes, eval_envs, eval_max_steps.

    `trust`: run the code that its files name, although it was not begun by this user in this directory; `stop`,
    `metrics`, `track`: as for `train` (without `track` the tracker that has recorded it goes on); `objective`: the
    run's, where it is one of your own, which no file holds.
    """
    from surefoot.connect.run import Run
    from surefoot.connect.tracking import beside, chosen
    from surefoot.runs.hooks import Hooks
    from surefoot.runs.mirror import place
    from surefoot.runs.start import resume

    where, mirror = place(run)
    resume(mirror or where, quiet, ranks, trust, Hooks(stop, metrics or {}), objective, beside(chosen(track)), **end)
    return Run(where).read()


def load(run: Path | str, *, env: GivenEnv = None, trust: bool = False) -> Run:
    """A run directory or policy file as an object: `load(path).evaluate(episodes=100)`, `.policy`, `.curve()`.

    `env`, `trust`: as for `evaluate`.
    """
    from surefoot.connect.run import Run

    return Run(run, env, trust)


def evaluate(
    run: Path | str,
    *,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = False,
    sticky: float | None = None,
    env: GivenEnv = None,
    ranks: int = 0,
    eval_envs: int = 0,
    eval_max_steps: int = 27_000,
    trust: bool = False,
) -> Evaluation:
    """Play episodes with fresh seeds with the policy of a run or policy file.

    `env`: None for its own, or what `train` takes with the same observations and actions; `sticky`: probability of
    sticky actions (Atari), None for its own; `ranks`: processes, 0: one per core for Atari and module:function with
    images, otherwise one; `eval_envs`: how many are played at a time, 0: as many as training had, at most 32;
    `eval_max_steps`: an episode that has not ended then is cut and counted in `cut`, 0: never; `trust`: run the code
    that the file names, although no run begun here wrote it.
    """
    return load(run, env=env, trust=trust).evaluate(
        episodes,
        seed=seed,
        greedy=greedy,
        sticky=sticky,
        ranks=ranks,
        eval_envs=eval_envs,
        eval_max_steps=eval_max_steps,
    )


def load_policy(
    run: Path | str, device: str = "cpu", *, env: GivenEnv = None, trust: bool = False
) -> tuple[Policy, EnvSpec, dict[str, Any]]:
    """The policy of a run or policy file, its environment, and the facts in its header.

    `policy.act(obs)` takes one of the environment's own observations and gives its own action. `env`, `trust`: as for
    `evaluate`.
    """
    from surefoot.connect.run import spec_of
    from surefoot.runs import policy_file

    return policy_file.load_policy(run, device, spec_of(env), trust)


def video(
    run: Path | str,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    greedy: bool = False,
    every: int = 0,
    max_steps: int = 0,
    env: GivenEnv = None,
    trust: bool = False,
) -> Path:
    """Record an episode with action probabilities and value beside the frames; `out` ends in .mp4 or .gif.

    `env`, `trust`: as for `evaluate`.
    """
    from surefoot.connect.run import spec_of
    from surefoot.runs import video as videos

    return videos.video(run, out, seed, greedy, every, max_steps, spec_of(env), trust)


def export(run: Path | str, onnx: Path | str, *, env: GivenEnv = None, trust: bool = False) -> Path:
    """Write the policy as an ONNX graph from the environment's own observation to its own action.

    Inputs, outputs and metadata are described in `surefoot.connect.export`; `env`, `trust`: as for `evaluate`. Raises
    Fault where the graph, run by onnxruntime, differs from the policy.
    """
    from surefoot.connect.export import export as write
    from surefoot.connect.run import spec_of

    return write(run, onnx, spec_of(env), trust)[0]


def export_minari(run: Path | str, dataset: str, *, env: GivenEnv = None, trust: bool = False, **how: Any) -> Any:
    """Play `episodes` and save them as a MinariDataset; `surefoot.connect.minari.export_minari` says with what."""
    from surefoot.connect.minari import export_minari as write
    from surefoot.connect.run import spec_of

    return write(run, dataset, env=spec_of(env), trust=trust, **how)


def plot(
    *runs: Path | str, out: Path | str = "curves.png", by: Sequence[str] = (), metric: str = "return_mean"
) -> Path:
    """Draw learning curves over steps and time, with bands over seeds; `runs`: directories, or folders of them.

    `by`: the settings whose values make the groups; without: all in which the runs differ but their seed.
    """
    from surefoot.connect import plots

    return plots.plot([Path(run) for run in runs], Path(out), [by] if isinstance(by, str) else by, metric)


def tune(
    task: str | Config,
    *,
    trials: int = 30,
    processes: int = 1,
    run_dir: Path | str | None = None,
    seeds: int = 3,
    quiet: bool = False,
    ray: str = "",
    **fields: Any,
) -> Config:
    """Search settings for a task, with `ray` on that cluster; returns the best Config, and leaves a table of it."""
    from surefoot.connect import tune as search
    from surefoot.connect.tune_ray import search_on
    from surefoot.presets import find

    how = trials, processes, Path(run_dir) if run_dir else None, seeds, quiet, search_on(ray)
    where = search.tune(find(task, **fields), *how)
    return search.read_preset(where / search.PRESET)


def summary(task: str | Config) -> str:
    """The layers of the task's network as a table."""
    from surefoot.commands import summary as layers
    from surefoot.presets import find

    return layers.table(find(task))


def bench(task: str | Config, *, seconds: float = 5.0, ranks: int = 0, **fields: Any) -> list[Speed]:
    """Measure environment steps per second of the task with 1, 2, ... ranks, or only with `ranks`."""
    from surefoot.commands import benchmark as benching
    from surefoot.presets import find

    return list(benching.bench(find(task, **fields), seconds, ranks))


def ladder(
    rungs: Sequence[str] = (),
    *,
    seeds: int = 3,
    frames: int = 0,
    run_dir: Path | str | None = None,
    quick: bool = False,
    episodes: int = 20,
    quiet: bool = False,
) -> Path:
    """Train the rungs from REINFORCE to PPO with equal frames and report what each bought; as `surefoot ladder`."""
    from surefoot.lesson import ladder as rungs_measured
    from surefoot.paths import absolute

    where = absolute(run_dir) if run_dir else None
    return rungs_measured.ladder(rungs, seeds, frames, where, quick, episodes, quiet)


def picture(name: str, out: Path | str | None = None) -> Path:
    """Draw one of the lesson's figures: cliff, clipped or clipped-explained."""
    from surefoot.commands import pictures

    return pictures.picture(name, out)
