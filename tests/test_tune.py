"""`surefoot tune`: every trial is a valid Config, none is lost to a kill, and the best is compared on fresh seeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import surefoot
from surefoot.commands.cli import main, parse
from surefoot.config import Config
from surefoot.connect.tune import ask_again, read_preset, study_of, suggest
from surefoot.errors import UserError
from surefoot.presets import LADDER, LESSON, PRESETS
from surefoot.runs.files import replace_file, seal

pytest.importorskip("optuna", reason="pip install 'surefoot[tune]'")
KINDS = [*PRESETS.values()]


@pytest.mark.parametrize("cfg", KINDS, ids=[cfg.task for cfg in KINDS])
def test_every_suggestion_is_a_config(cfg: Config) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = [suggest(study.ask(), cfg) for _ in range(20)]
    assert len(set(map(str, found))) == 20
    assert all(one.env == cfg.env and one.total_steps == cfg.total_steps for one in found)
    if cfg in (LESSON, *LADDER):
        assert {one.minibatch_size for one in found} == {0}


def test_a_trial_whose_process_was_killed_is_asked_again(small: Config, tmp_path: Path) -> None:
    replace_file(tmp_path / "tune.json", seal({"config": small.to_json()}))
    trial = study_of(tmp_path).ask()
    first = suggest(trial, small)
    trial.set_user_attr("run", "trial-0")
    study = study_of(tmp_path)  # another process
    assert ask_again(study) == 1
    again = study.ask()
    assert (again.number, again.user_attrs["run"]) == (1, "trial-0")
    assert suggest(again, small) == first


def test_a_preset_is_a_task_where_it_is_ones_own(
    tmp_path: Path, small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "preset.json"
    replace_file(file, seal({"config": replace(PRESETS["cartpole"], num_epochs=7).to_json(), "begun": ""}))
    command = parse(["train", str(file), "--seed", "5"])
    assert (command.config.num_epochs, command.config.seed) == (7, 5)  # type: ignore[union-attr]
    replace_file(file, seal({"config": small.to_json(), "begun": "somebody else's"}))
    assert main(["train", str(file)]) == 2
    assert "asks to import worlds and make Catch-v0, and no run begun here wrote it" in capsys.readouterr().err
    for text, says in (("{}", "no preset"), (None, "there is no file")):
        file.unlink()
        if text:
            file.write_text(text)
        assert main(["train", str(file)]) == 2
        assert says in capsys.readouterr().err
        file.touch()


@pytest.mark.slow
def test_a_search_goes_on_after_a_kill_and_ends_with_a_comparison(small: Config, tmp_path: Path) -> None:
    where = tmp_path / "search"
    code = "import sys, json, surefoot; from surefoot.config import Config; from pathlib import Path\n"
    code += (
        "surefoot.tune(Config.from_json(json.loads(sys.argv[1])), trials=6, processes=2, run_dir=sys.argv[2], seeds=2)"
    )
    cfg = replace(small, total_steps=8 * 256 * 2, eval_episodes=5)
    call = [sys.executable, "-c", code, json.dumps(cfg.to_json()), str(where)]
    first = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    while not list(where.glob("trial-*/metrics.jsonl")):
        assert first.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    trials = study_of(where).get_trials()
    ended = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert 6 <= len(ended) <= 7  # both processes may begin the last one
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]
    lost = {trial.user_attrs["run"] for trial in trials if trial.state.name == "FAIL"}
    assert lost <= {trial.user_attrs["run"] for trial in ended}
    text = (where / "table.md").read_text()
    best = f"best-{study_of(where).best_trial.user_attrs['run']}"
    for name, folder in (("default", "default"), ("best", best)):
        runs = [surefoot.load(run) for run in sorted((where / folder).glob("seed-*"))]
        assert [run.config.seed for run in runs] == [1_000_001, 1_000_002]
        assert f"| {name} |" in text
        assert all(f"{run.evaluation.mean:.2f}" in text for run in runs if run.evaluation)
    assert read_preset(where / "preset.json") == replace(
        surefoot.load(where / best / "seed-1000001").config, seed=cfg.seed
    )
    assert (where / "importance.png").read_bytes().startswith(b"\x89PNG")
    better = study_of(where).best_trial
    better.params["num_epochs"] += 1 if better.params["num_epochs"] < 4 else -1
    better.values, better.user_attrs["run"] = [1e6], "trial-99"
    study_of(where).add_trial(better)
    surefoot.tune(cfg, trials=6, run_dir=where, seeds=2)  # a search that goes on compares what it has now
    assert surefoot.load(where / "best-trial-99" / "seed-1000001").config.num_epochs == better.params["num_epochs"]
    with pytest.raises(UserError, match="tunes another Config"):
        surefoot.tune(small, trials=6, run_dir=where)
