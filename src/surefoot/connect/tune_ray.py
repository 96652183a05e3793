"""`surefoot tune --ray`: trials of the search on a Ray cluster, by Ray Tune with its Optuna search.

The study stays Optuna's journal in the directory of the search, which all nodes see: Ray's OptunaSearch asks it for
trials and tells it their scores, and a trial prunes itself, as on one machine. Where its node or process is lost Ray
starts it again, on what is left, and its run continues from its checkpoint.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from surefoot.connect.tune import Search, base, ended, search_here, study_of, suggest, train_trial
from surefoot.envs.gym import is_local
from surefoot.envs.registrations import register, registration
from surefoot.errors import Fault, UserError, note, said
from surefoot.output import doing
from surefoot.parallel.ray import connected, marked
from surefoot.parallel.ray_rank import require_same_place, versions

if TYPE_CHECKING:
    import optuna

    from surefoot.config import Config

LOSSES = 10  # of one trial's process, before the search is given up
OURS = "DISABLE_SIGINT_HANDLER", "DISABLE_AUTO_CALLBACK_LOGGERS", "DISABLE_STRICT_METRIC_CHECKING"
SETTINGS = {f"TUNE_{name}": "1" for name in OURS} | {"TUNE_PRINT_ALL_TRIAL_ERRORS": "0", "RAY_AIR_NEW_OUTPUT": "0"}
"""Ctrl-C means what it always means, Ray Tune writes and prints nothing of its own, and a trial may report nothing"""


@dataclass(frozen=True)
class Trial:
    """What a worker of Ray Tune must know to run a trial of the study."""

    where: Path
    mark: str
    versions: dict[str, str]
    paths: list[str]
    registration: str

    def __call__(self, given: dict[str, Any]) -> None:
        import optuna
        from ray import tune

        sys.path += [path for path in self.paths if path not in sys.path]
        try:
            require_same_place(self.where, self.mark, self.versions)
            register(self.registration)
            trial = optuna.trial.Trial(study_of(self.where), given["trial"])
            tune.report({"score": train_trial(trial, self.where, base(self.where))})
        except optuna.TrialPruned:  # Ray's OptunaSearch takes one that reports nothing for pruned
            return
        except Exception as error:  # raised, Ray would try it again
            mistake = isinstance(error, UserError) and not isinstance(error, Fault)
            tune.report({"score": math.nan, "error": (not mistake, str(error) if mistake else said(error))})


def ask(cfg: Config, trial: Any) -> dict[str, Any]:
    """Have the study choose a trial's settings; returns by what a worker finds it."""
    suggest(trial, cfg)
    return {"trial": trial._trial_id}


def search_on(address: str) -> Search:
    """What runs a study's trials: the Ray cluster at `address`, or, where that is empty, processes of this machine."""
    return partial(search, address) if address else search_here


def search(address: str, where: Path, trials: int, at_a_time: int, show: Callable[[], None]) -> None:
    """Run the study's trials, as a `tune.Search`, on the Ray cluster at `address`; raises UserError or Fault."""
    cfg, study = base(where), study_of(where)
    if (left := trials - len(ended(study))) <= 0:
        return
    known = None if is_local(cfg.env) else registration(cfg.env)
    if known is None:
        raise UserError(f"'{cfg.task}' can be made in this process alone: with --ray name module:function")
    with (
        marked(where) as mark,
        connected(address, at_a_time, "processes", **SETTINGS) as ray,
        TemporaryDirectory(prefix=".ray-", dir=where) as kept,
        doing(f"{cfg.task}: searching"),
    ):
        job = Trial(where, mark, versions(), [os.path.abspath(path) for path in sys.path], known)
        try:
            fit(job, partial(ask, cfg), study, left, at_a_time, kept, show)
        except (ray.tune.TuneError, ray.exceptions.RayError) as error:
            raise Fault(f"Ray has failed ({said(error)})") from None


def fit(job: Trial, space: Any, study: optuna.Study, trials: int, at_a_time: int, kept: str, show: Any) -> None:
    """Have Ray Tune run the trials; `kept`: where it keeps what it needs meanwhile."""
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.search.optuna import OptunaSearch
    from ray.tune.stopper import Stopper

    errors = list[tuple[bool, str]]()

    class Search(OptunaSearch):  # type: ignore[misc]
        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """The worker has reported every row to the study."""

    class Watch(TrialProgressCallback, Stopper):  # type: ignore[misc]
        """In the place of the callback that prints every trial's end."""

        shown = 0.0

        def on_step_end(self, **_: Any) -> None:
            if time.monotonic() > self.shown + 2:
                show()
                self.shown = time.monotonic()

        def on_trial_result(self, *, result: dict[str, Any], **_: Any) -> None:
            errors.extend([result["error"]] if "error" in result else [])

        def on_trial_recover(self, **_: Any) -> None:
            note("a trial's process was lost: it goes on from its newest checkpoint")

        def on_trial_complete(self, **_: Any) -> None:
            pass

        def on_trial_error(self, *, trial: Any, **_: Any) -> None:
            errors.append((True, f"a trial's process was lost {LOSSES + 1} times ({said(trial.get_error())})"))

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(errors)

    watch, storage = Watch(), study._storage
    asked = Search(space, "score", "max", sampler=study.sampler, study_name=study.study_name, storage=storage)
    again = tune.FailureConfig(max_failures=LOSSES)
    tune.Tuner(
        tune.with_resources(lambda given: job(given), {"cpu": 1}),
        tune_config=tune.TuneConfig(search_alg=asked, num_samples=trials, max_concurrent_trials=at_a_time),
        run_config=tune.RunConfig("search", kept, failure_config=again, callbacks=[watch], stop=watch, verbose=0),
    ).fit()
    if errors:
        raise (Fault if errors[0][0] else UserError)(errors[0][1])
