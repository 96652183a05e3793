"""Policies on the Hugging Face Hub: safetensors, JSON, pictures and a model card; nothing from there is run."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HFValidationError

from surefoot.connect.run import Run
from surefoot.errors import Fault, UserError, said
from surefoot.runs.files import read_named
from surefoot.runs.policy_file import BEST
from surefoot.runs.report_card import curve
from surefoot.runs.video import video

if TYPE_CHECKING:
    from surefoot.config import Config

TAKEN = ("*.safetensors", "*.json", "*.jsonl", "*.md", "*.png", "*.gif", "*.mp4")  # of a repository
CARD = """# {task}, learned by surefoot

A policy for **{task}**, trained for {steps:,} steps{score}.

![a game](replay.{film})

    pip install surefoot
    surefoot pull {repo}
    surefoot evaluate {name}

In Python:

    policy, env, facts = surefoot.load_policy("{name}")
    action = policy.act(obs)

The settings are in `settings.json`, the learning curve in `metrics.jsonl`, every score of the evaluation in
`evaluation.json`. The policy is a safetensors file: loading it runs no code.
"""


def push(run: Path | str, repo: str, private: bool = False, trust: bool = False) -> str:
    """Publish a run's policy as USER/NAME; returns its address. What is there is replaced, and history kept.

    The command lines and the machine in config.json stay at home. Raises UserError for a wrong name, Fault where the
    Hub refuses or cannot be reached; a token comes from `hf auth login` or HF_TOKEN.
    """
    finished = Run(run, trust=trust)
    if not finished.directory.is_dir():
        raise UserError(f"'{run}' is no run directory: its curve and settings belong to what is published")
    with tempfile.TemporaryDirectory() as name, said_by_the_hub(repo):
        folder = Path(name)
        write(finished, folder, repo, trust)
        api = HfApi()
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        files = [CommitOperationAdd(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]
        score = f" ({finished.evaluation.mean:.2f})" if finished.evaluation else ""
        api.create_commit(repo, files, commit_message=f"{finished.config.task}{score}")
    return address


def write(run: Run, folder: Path, repo: str, trust: bool) -> None:
    """Everything that is published, into an empty folder."""
    best = (run.directory / BEST).exists()
    (folder / "policy.safetensors").write_bytes(read_named(run.directory / (BEST if best else "policy.safetensors")))
    for name in ("metrics.jsonl", "evaluation.json"):
        if (run.directory / name).exists():
            (folder / name).write_bytes(read_named(run.directory / name))
    (folder / "settings.json").write_text(json.dumps(run.config.to_json(), indent=1), encoding="utf-8")
    with suppress(ModuleNotFoundError):  # matplotlib
        curve(run.directory, folder / "curve.png")
    film = "mp4"
    try:
        video(run.directory, folder / "replay.mp4", max_steps=4_000, trust=trust)
    except UserError:
        with suppress(UserError):
            video(run.directory, folder / "replay.gif", max_steps=4_000, trust=trust)
        film = "gif"
    (folder / "README.md").write_text(str(card(run, run.config, repo, film)), encoding="utf-8")


def card(run: Run, cfg: Config, repo: str, film: str) -> ModelCard:
    """The model card, with the `model-index` by which the Hub ranks reinforcement learning."""
    results, score = [], ""
    if run.evaluation:
        value = f"{run.evaluation.mean:.2f} +/- {statistics.pstdev(run.evaluation.scores):.2f}"
        score = f"; mean score of {len(run.evaluation.scores)} episodes: {value}"
        reward: Any = {
            "metric_type": "mean_reward",
            "metric_name": "mean_reward",
            "metric_value": value,
            "verified": False,
        }
        what: Any = {"task_type": "reinforcement-learning", "dataset_name": cfg.task, "dataset_type": cfg.task}
        results = [EvalResult(**what, **reward)]
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "ppo", cfg.task]
    data = ModelCardData(library_name="surefoot", tags=tags, model_name="surefoot", eval_results=results or None)
    text = CARD.format(task=cfg.task, steps=run.steps, score=score, film=film, repo=repo, name=repo.rpartition("/")[2])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def pull(repo: str, folder: Path | str | None = None, revision: str | None = None) -> Path:
    """Download USER/NAME into `folder` (default: NAME); returns it. Only tensors, JSON, text and pictures are taken."""
    where = Path(folder or repo.rpartition("/")[2])
    if where.exists() and any(where.iterdir()):
        raise UserError(f"'{where}' is there already: name another folder with --into")
    with said_by_the_hub(repo):
        snapshot_download(repo, revision=revision, local_dir=where, allow_patterns=list(TAKEN))
    if not list(where.glob("*.safetensors")):
        raise UserError(f"'{repo}' has no policy of surefoot's")
    return where


@contextmanager
def said_by_the_hub(repo: str) -> Iterator[None]:
    """What the Hub's library raises, as a sentence."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"'{repo}' is no name on the Hub: USER/NAME is needed") from error
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise Fault(f"the Hugging Face Hub does not take or give '{repo}': {said(error)}") from error
