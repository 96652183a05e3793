"""The command line as its user meets it: real processes, one sentence and exit code 2 for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import gone_within
from surefoot.algorithm.objectives import SPO, AdaptivePenalty, ClippedSurrogate, Surrogate
from surefoot.commands import cli
from surefoot.commands.cli import main, parse
from surefoot.errors import UserError

FAST = [
    "--network.hidden",
    "16",
    "--total-steps",
    "1024",
    "--num-steps",
    "16",
    "--minibatch-size",
    "64",
    "--eval-episodes",
    "6",
]


def surefoot(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "surefoot", *args], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.long
def test_the_newcomers_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """train in a real process, then evaluate, video, resume; from a directory with a space in its name."""
    home = tmp_path / "my runs ü"
    home.mkdir()
    trained = surefoot("train", "cartpole", *FAST, "--run-dir", "a", "--ranks", "1", cwd=home)
    assert trained.returncode == 0, trained.stderr
    assert "score" in trained.stdout
    assert "surefoot resume a" in trained.stdout
    assert "\x1b" not in trained.stdout  # no control codes where there is no terminal
    names = {p.name for p in (home / "a").iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "tb",
        "checkpoints",
        "policy.safetensors",
        "report.md",
        "curve.png",
    } <= names
    assert {"game.gif", "evaluation.json"} <= names
    assert list((home / "a" / "tb").glob("events*"))
    report = (home / "a" / "report.md").read_text()
    assert report.count("95 % interval") == 2  # of the mean and of the interquartile mean
    monkeypatch.chdir(home)
    assert main(["evaluate", "a", "--episodes", "5", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["scores"]) == 5
    assert facts["low"] <= facts["mean"] <= facts["high"]
    assert facts["iqm_low"] <= facts["iqm"] <= facts["iqm_high"]
    assert "sticky" not in facts  # an Atari console's
    assert facts["mean"] == pytest.approx(sum(facts["scores"]) / 5)
    assert main(["video", "a", "--out", "film.mp4", "--max-steps", "20"]) == 0
    assert (home / "film.mp4").stat().st_size > 1000
    capsys.readouterr()
    assert main(["resume", "a", "--total-steps", "2048", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((home / "a" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2048


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "pogn"], "did you mean pong"),
        (["train"], "needs a task"),
        (["trian", "pong"], "did you mean train"),
        (["train", "pong", "--sede", "3"], "no option --sede: did you mean --seed"),
        (["train", "pong", "--seed", "abc"], "--seed"),
        (["train", "pong", "--seed", "-3"], "seed is -3"),
        (["train", "pong", "--learning-rate.initial", "nan"], "initial is nan"),
        (["train", "pong", "--objective.clip-range", "-0.1"], "clip_range is -0.1"),
        (
            ["train", "cartpole", "--num-envs", "3"],
            "allowed is 3, 6, 12, 24, 48, 96, 192: 3 environments times a divisor of",
        ),
        (["train", "pong", "--ranks", "3"], "divisors of the 32 environments"),
        (["train", "cartpole", "--ranks", "1", "--device", "warp"], "device 'warp'"),
        (["train", "CartPoel-v1", "--ranks", "1"], "did you mean CartPole-v1"),
        (["evaluate", "nowhere"], "no file 'nowhere'"),
        (["evaluate"], "a run directory or policy file"),
        (["resume", "nowhere"], "not a run directory"),
        (["picture", "clif"], "choose one of cliff"),
        (["video", "nowhere", "--out", "x.avi"], "must end in .mp4 or .gif"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    heard = capsys.readouterr()
    assert says in heard.err
    assert heard.err.count("\n") == 1
    assert not any(tmp_path.iterdir())  # and nothing was begun


def test_an_unwritable_run_directory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", "cartpole", "--ranks", "1", "--run-dir", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_policy_for_another_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import surefoot as package

    package.train("cartpole", total_steps=512, eval_episodes=0, run_dir=tmp_path / "a", ranks=1, quiet=True)
    assert main(["evaluate", str(tmp_path / "a"), "--task", "pong"]) == 2
    assert "for the task 'cartpole'" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "a"), "--sticky", "0.25"]) == 2
    small = ["--ranks", "1", "--num-envs", "1", "--minibatch-size", "128"]
    assert main(["train", "pong", "--from", str(tmp_path / "a"), *small, "--run-dir", str(tmp_path / "b")]) == 2
    assert "does not fit 'pong'" in capsys.readouterr().err


def test_options_reach_the_config_in_any_order() -> None:
    command = parse(
        [
            "train",
            "pong",
            "--objective.clip-range",
            "0.3",
            "--seed",
            "7",
            "--num-steps",
            "32",
            "64",
            "--advantage.gae_lambda",
            "0.8",
        ]
    )
    assert isinstance(command, cli.Train)
    assert command.config.objective == ClippedSurrogate(0.3)
    assert (command.config.seed, command.config.num_steps, command.config.advantage.gae_lambda) == (7, (32, 64), 0.8)
    other = parse(["train", "pong", "objective:surrogate"])
    assert isinstance(other, cli.Train)
    assert other.config.objective == Surrogate()
    penalty = parse(["train", "cartpole", "objective:spo", "kl-penalty:adaptive-penalty", "--kl-penalty.initial", "2"])
    assert (penalty.config.objective, penalty.config.kl_penalty) == (SPO(), AdaptivePenalty(initial=2.0))
    negated = parse(["train", "reinforce", "--network.no-critic", "--env.no-settle", "--advantage.gamma", "0.9"]).config
    assert (negated.network.critic, negated.env.settle, negated.advantage.gamma) == (False, False, 0.9)
    assert not parse(["train", "pong", "network:mlp", "--network.no-running"]).config.network.running


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = "from surefoot.commands.cli import main; main(['--help'])"
    code = f"import sys; {code}; print({{'torch', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    for name in cli.COMMANDS:
        assert name in done.stdout


@contextmanager
def endless_run(cwd: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A real run on two ranks that has begun to learn, and its ranks' process ids."""
    command = ["train", "cartpole", "--run-dir", "a", "--ranks", "2", "--total-steps", "100000000", *more]
    pipe = subprocess.PIPE
    whole = [sys.executable, "-m", "surefoot", *command]
    with subprocess.Popen(whole, cwd=cwd, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "steps/s" in line:
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        yield process, [int(child) for child in children]


@pytest.mark.long
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    with endless_run(tmp_path) as (process, ranks):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
        assert "surefoot resume a" in out
        assert list((tmp_path / "a" / "checkpoints").glob("[0-9]*"))
        assert gone_within(5, ranks)


@pytest.mark.slow
def test_a_signal_to_every_process_at_once_saves_as_well(tmp_path: Path) -> None:
    """As schedulers and service managers do: the ranks hear it directly and from their launcher."""
    with endless_run(tmp_path) as (process, ranks):
        for pid in (*ranks, process.pid):
            os.kill(pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
        assert "stopped and saved" in out
        assert list((tmp_path / "a" / "checkpoints").glob("[0-9]*"))


@pytest.mark.long
def test_a_stopped_rank_is_found_out_and_no_process_is_left(tmp_path: Path) -> None:
    with endless_run(tmp_path, "--timeout", "3", "--save-every", "0.1") as (process, ranks):
        os.kill(ranks[1], signal.SIGSTOP)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "no sign of life for 3 seconds" in err or "has hung for 3 seconds" in err
        assert "; what was saved goes on with: " in err
        assert "Traceback" not in err
        assert gone_within(5, ranks)
    assert main(["resume", str(tmp_path / "a"), "--total-iterations", "1", "--eval-episodes", "0", "--ranks", "1"]) == 0


@pytest.mark.long
def test_a_reader_who_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "surefoot", "train", "cartpole", *FAST, "--ranks", "1", "--run-dir", "a"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0
    assert (tmp_path / "a" / "report.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_with_one_message(victim: int, tmp_path: Path) -> None:
    with endless_run(tmp_path, "--save-every", "0.1") as (process, ranks):
        os.kill(ranks[victim], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert err.startswith(f"surefoot: rank {victim} was ended by SIGKILL")
        assert "; what was saved goes on with: " in err
        assert "Traceback" not in err
        assert gone_within(5, ranks)


@pytest.mark.slow
def test_the_ranks_die_with_their_launcher(tmp_path: Path) -> None:
    with endless_run(tmp_path) as (process, ranks):
        os.kill(ranks[1], signal.SIGSTOP)  # the other then waits for it
        process.kill()
        assert gone_within(5, ranks)


def test_usage_errors_never_show_a_traceback() -> None:
    with pytest.raises(UserError):
        parse(["train", "pong", "--num-envs", "1.5"])


def test_without_ffmpeg_a_film_is_refused_in_a_sentence_and_a_gif_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import surefoot as package

    package.train("cartpole", total_steps=512, eval_episodes=0, run_dir=tmp_path / "a", ranks=1, quiet=True)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-ffmpeg"))
    assert main(["video", str(tmp_path / "a"), "--out", str(tmp_path / "x.mp4"), "--max-steps", "4"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["video", str(tmp_path / "a"), "--out", str(tmp_path / "x.gif"), "--max-steps", "4"]) == 0


@pytest.mark.slow
def test_a_signal_during_the_closing_evaluation_says_how_to_go_on(tmp_path: Path) -> None:
    """What was trained is saved; `resume` evaluates it."""
    command = ["train", "cartpole", "--total-steps", "1024", "--eval-episodes", "1000000", "--run-dir", "a"]
    whole = [sys.executable, "-m", "surefoot", *command, "--ranks", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(whole, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "evaluating" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "surefoot resume a" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """The ranks are stopped, so that the first one cannot end them; two of a kind at once might be heard as one."""
    with endless_run(tmp_path) as (process, ranks):
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert gone_within(5, ranks)


@pytest.mark.long
def test_the_program_finds_a_module_beside_it(tmp_path: Path) -> None:
    """As `python -m surefoot` does: a user's own environment in the present directory."""
    source = "from gymnasium import make\n\ndef env(**how): return make('CartPole-v1', **how)\n"
    (tmp_path / "mine.py").write_text(source)
    program = Path(sys.executable).with_name("surefoot")
    run = [program, "train", "mine:env", "--total-steps", "2048", "--eval-episodes", "1", "--quiet"]
    done = subprocess.run([*run, "--ranks", "2"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
