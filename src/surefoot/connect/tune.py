"""`surefoot tune`: a search over the settings of a task with Optuna, and what it found beside the default.

A directory holds everything: study.log (Optuna's journal), the trials' runs, preset.json, table.md, importance.png. The
same command goes on where it was killed: a trial that was running is asked again and continues from its checkpoint.
"""

from __future__ import annotations

import io
import json
import math
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.algorithm.advantages import GAE
from surefoot.algorithm.schedules import AdaptiveRate
from surefoot.config import Config
from surefoot.errors import DAMAGE, Fault, UserError, needs_extra, note
from surefoot.models.networks import MLP
from surefoot.output import Progress
from surefoot.parallel.launch import die_with_launcher
from surefoot.paths import absolute, file_name, shown
from surefoot.runs.directory import read_evaluation
from surefoot.runs.files import Folder, lock_run, read_named, replace_file, seal, unseal
from surefoot.runs.hooks import Hooks
from surefoot.runs.metrics import read
from surefoot.runs.start import start, start_seeds
from surefoot.runs.trust import own_seal, permit

if TYPE_CHECKING:
    import optuna

PRESET, JOURNAL, SETTINGS = "preset.json", "study.log", "tune.json"
FRESH = 1_000_001  # first seed of the comparison; trials have the task's own
WARM_UP = 5  # trials before any is pruned

Search = Callable[[Path, int, int, Callable[[], None]], None]
"""runs the trials of the study in a directory, until there are so many, so many at a time, and shows how far it is"""


def suggest(trial: Any, cfg: Config) -> Config:
    """The Config of a trial: ranges by what the preset has, and by what it sees."""
    vectors = isinstance(cfg.network, MLP)
    fields: dict[str, Any] = {"num_epochs": trial.suggest_int("num_epochs", 1, 10 if vectors else 4)}
    rate = {"initial": trial.suggest_float("learning_rate.initial", 1e-4, 3e-3, log=True)}
    if isinstance(cfg.learning_rate, AdaptiveRate):
        rate["desired_kl"] = trial.suggest_float("learning_rate.desired_kl", 3e-3, 5e-2, log=True)
        rate["cap"] = max(cfg.learning_rate.cap, rate["initial"])
    fields["learning_rate"] = replace(cfg.learning_rate, **rate)
    gammas = 0.9, 0.95, 0.98, 0.99, 0.995, 0.999
    gamma: dict[str, Any] = {"gamma": trial.suggest_categorical("advantage.gamma", gammas)}
    if isinstance(cfg.advantage, GAE):
        gamma["gae_lambda"] = trial.suggest_categorical("advantage.gae_lambda", (0.8, 0.9, 0.95, 0.98, 1.0))
    fields["advantage"] = replace(cfg.advantage, **gamma)
    if hasattr(cfg.objective, "clip_range"):
        clip: dict[str, Any] = {"clip_range": trial.suggest_float("objective.clip_range", 0.1, 0.4)}
        fields["objective"] = replace(cfg.objective, **clip)
    fields["entropy"] = replace(cfg.entropy, coef=trial.suggest_float("entropy.coef", 1e-5, 3e-2, log=True))
    if cfg.minibatch_size:
        steps = trial.suggest_categorical("num_steps", (64, 128, 256) if vectors else (64, 128))
        count = trial.suggest_categorical("minibatches", (2, 4, 8, 16, 32) if vectors else (2, 4, 8))
        fields |= {"num_steps": (steps,), "minibatch_size": cfg.num_envs * steps // count}
    return replace(cfg, **fields)


def score(run: Path) -> float:
    """A trial's score: the mean of its last quarter's training scores, where the last 100 episodes are one."""
    rows = [row for row in read(run) if row["return_mean"] is not None]
    if not rows:
        raise Fault("no episode has ended")
    late = [row["return_mean"] for row in rows if row["step"] >= 0.75 * rows[-1]["step"]]
    return statistics.fmean(late)


def study_of(where: Path) -> optuna.Study:
    """The study in a directory, made where there is none."""
    with needs_extra("tune"):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = str(where / JOURNAL)
    storage = JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))
    cfg = base(where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an option is new
        sampler = optuna.samplers.TPESampler(constant_liar=True)  # several processes do not ask for the same
    pruner = optuna.pruners.MedianPruner(WARM_UP, n_warmup_steps=cfg.total_steps // 4)
    how: Any = {"sampler": sampler, "pruner": pruner, "direction": "maximize"}
    return optuna.create_study(study_name="tune", storage=storage, load_if_exists=True, **how)


def base(where: Path) -> Config:
    """The Config that is tuned in a directory."""
    with Folder(where) as folder:
        return Config.from_json(unseal(folder.read(SETTINGS))["config"])


def ended(study: optuna.Study) -> list[Any]:
    """The trials that have a result, pruned ones too."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]


def train_trial(trial: Any, where: Path, cfg: Config) -> float:
    """Train a trial of the study in `where`; returns its score, raises TrialPruned where it has none."""
    import optuna

    name = trial.user_attrs.get("run", f"trial-{trial.number}")
    trial.set_user_attr("run", name)
    pruned = list[int]()

    def stop(row: dict[str, Any]) -> bool:
        if not math.isnan(row["return_mean"]):
            trial.report(row["return_mean"], row["step"])
        if trial.should_prune():
            pruned.append(row["step"])
        return bool(pruned)

    try:
        trial_cfg = replace(suggest(trial, cfg), eval_episodes=0)
        start(trial_cfg, where / name, quiet=True, ranks=1, hooks=Hooks(stop))
        result = score(where / name)
    except UserError as error:  # it diverged
        trial.set_user_attr("failure", str(error))
        raise optuna.TrialPruned from error
    if pruned:
        raise optuna.TrialPruned
    return result


def work(where: Path, trials: int) -> None:
    """What one process does: trials, one after the other, until there are as many."""
    cfg, study = base(where), study_of(where)
    while len(ended(study)) < trials:
        study.optimize(lambda trial: train_trial(trial, where, cfg), n_trials=1)


def ask_again(study: optuna.Study) -> int:
    """Trials whose process is gone are asked again, in the same run directories; returns how many."""
    lost = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
    for trial in lost:
        study.tell(trial.number, state=type(trial.state).FAIL)
        again = {"run": trial.user_attrs.get("run", f"trial-{trial.number}")}
        study.enqueue_trial(trial.params, user_attrs=again)
    return len(lost)


@contextmanager
def workers(where: Path, trials: int, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that work on the study, and end with this one."""
    call = [sys.executable, "-m", "surefoot.connect.tune", str(where), str(trials), json.dumps(sys.path)]
    running = [subprocess.Popen(call, stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.terminate()
            process.communicate()


def search_here(where: Path, trials: int, processes: int, show: Callable[[], None]) -> None:
    """Run the trials in processes of this machine; raises Fault where one of them has failed."""
    with workers(where, trials, processes) as running:
        while any(process.poll() is None for process in running):
            with suppress(subprocess.TimeoutExpired):
                next(process for process in running if process.poll() is None).wait(2.0)
            show()
        if any(process.returncode for process in running):
            raise Fault(f"a process of the search has failed; the same command goes on in '{shown(where)}'")


def tune(
    cfg: Config,
    trials: int = 30,
    processes: int = 1,
    run_dir: Path | None = None,
    seeds: int = 3,
    quiet: bool = False,
    search: Search = search_here,
) -> Path:
    """Search, then train default and best on fresh seeds; returns the directory with preset.json and table.md.

    `search`: what runs the trials. Raises UserError for a mistake, Fault where a process or every trial has failed.
    """
    if min(trials, processes, seeds) < 1:
        raise UserError(f"trials {trials}, processes {processes}, seeds {seeds}: allowed are numbers from 1")
    if not cfg.total_steps:
        raise UserError("total_steps is 0: name the steps of a trial with --total-steps")
    where, progress = absolute(run_dir or Path("runs") / f"tune-{file_name(cfg.task)}"), Progress(quiet)
    with lock_run(where):
        with Folder(where) as folder:
            known = folder.has(SETTINGS)
        if known and base(where) != cfg:
            raise UserError(f"'{shown(where)}' tunes another Config: choose another --run-dir")
        if not known:
            replace_file(where / SETTINGS, seal({"config": cfg.to_json()}))
        study = study_of(where)
        if again := ask_again(study):
            note(f"{again} trials that were interrupted go on")

        def show() -> None:
            best = f", best {study.best_value:.4g}" if any(t.state.name == "COMPLETE" for t in ended(study)) else ""
            progress.show(f"{cfg.task}: {len(ended(study))} of {trials} trials{best}")

        search(where, trials, processes, show)
        if not any(trial.state.name == "COMPLETE" for trial in ended(study)):
            raise Fault("every trial has failed or was pruned: give them more --total-steps")
        best = chosen(study, cfg)
        facts = {"config": best.to_json(), "begun": own_seal(where, cfg.env)}
        replace_file(where / PRESET, seal(facts))
        importance(study, where / "importance.png")
        found = f"best-{study.best_trial.user_attrs['run']}"  # more trials may find a better one
        compared = {"default": compare(cfg, where / "default", seeds), "best": compare(best, where / found, seeds)}
        text = table(study, cfg, compared, where)
        replace_file(where / "table.md", text.encode())
    progress.write(text, "")
    return where


def chosen(study: optuna.Study, cfg: Config) -> Config:
    """The Config of the best trial."""
    import optuna

    return suggest(optuna.trial.FixedTrial(study.best_trial.params), cfg)


def compare(cfg: Config, where: Path, seeds: int) -> list[float]:
    """The closing evaluation's mean score of runs with fresh seeds."""
    folder, finished = start_seeds(seeds, replace(cfg, seed=FRESH), where, None, True)
    if not finished:
        raise KeyboardInterrupt
    evaluations = (read_evaluation(run) for run in sorted(folder.glob("seed-*")))
    return [evaluation.mean for evaluation in evaluations if evaluation]


def importance(study: optuna.Study, path: Path) -> None:
    """Draw how much each setting matters among the better trials (PED-ANOVA, Watanabe et al. 2023)."""
    import optuna
    from matplotlib.figure import Figure

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the evaluator is new
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError) as error:  # too few trials
        note(f"no importance of settings: {error}")
        return
    figure = Figure((6, 0.6 + 0.28 * len(importances)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([*importances][::-1], [*importances.values()][::-1], color="#0072B2")
    axes.set_xlabel("importance among the better trials")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture := io.BytesIO(), dpi=200)
    replace_file(path, picture.getvalue())


def table(study: optuna.Study, cfg: Config, compared: dict[str, list[float]], where: Path) -> str:
    """The comparison on fresh seeds, and the best trials, as Markdown."""
    lines = [f"# {cfg.task}: {len(ended(study))} trials", "", "| | mean score on fresh seeds | each |", "|---|---|---|"]
    for name, scores in compared.items():
        mean = f"{statistics.fmean(scores):.2f}" if scores else ""
        lines.append(f"| {name} | {mean} | {', '.join(f'{x:.2f}' for x in scores)} |")
    whole = [trial for trial in ended(study) if trial.state.name == "COMPLETE"]
    names = list(study.best_trial.params)
    lines += ["", f"| trial | score | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for trial in sorted(whole, key=lambda trial: -trial.value)[:20]:
        cells = (f"{x:.3g}" if isinstance(x := trial.params.get(name), float) else str(x) for name in names)
        lines.append(f"| {trial.user_attrs['run']} | {trial.value:.2f} | {' | '.join(cells)} |")
    pruned = len(ended(study)) - len(whole)
    lines += ["", f"{pruned} more were pruned or failed. The best settings: `surefoot train {shown(where / PRESET)}`"]
    return "\n".join(lines) + "\n"


def read_preset(file: Path, trust: bool = False) -> Config:
    """The Config in a preset.json; raises UserError where it is none, or names code and is not this user's own."""
    try:
        facts = unseal(read_named(file))
        cfg = Config.from_json(facts["config"])
    except FileNotFoundError:
        raise UserError(f"there is no file '{shown(file)}'") from None
    except DAMAGE as error:
        raise UserError(f"'{shown(file)}' is no preset of surefoot tune ({error})") from error
    run_seal = [(file.absolute().parent, facts.get("begun"))]
    permit(cfg.env, file, trust, run_seal, "name the environment as TASK, and its settings as options")
    return cfg


if __name__ == "__main__":
    die_with_launcher()
    sys.path += [path for path in json.loads(sys.argv[3]) if path not in sys.path]
    os.environ["OMP_NUM_THREADS"] = "1"
    work(Path(sys.argv[1]), int(sys.argv[2]))
