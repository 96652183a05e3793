"""Push and pull with the Hub's own library, against a server that stands in for the Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

pytest.importorskip("huggingface_hub", reason="pip install 'surefoot[hub]'")

import huggingface_hub.constants as constants

import surefoot
from surefoot.commands.cli import main

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """One repository in memory, as far as creating, committing and downloading need it."""

    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_: Any) -> None: ...

    def answer(self, code: int, facts: Any = None, data: bytes = b"", **headers: str) -> None:
        body = data if facts is None else json.dumps(facts).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length")
        body = self.rfile.read(int(size)) if size else b"".join(self.chunks())
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.answer(401, {"error": "Invalid token"})
        elif self.path.startswith("/api/repos/create"):
            self.answer(200, {"url": f"http://{self.headers['Host']}/someone/walker", "name": "someone/walker"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    Hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer(200, {"commitUrl": f"http://{self.headers['Host']}/c/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer(200, {})

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            data = Hub.files.get(self.path.split(f"/resolve/{COMMIT}/")[-1])
            if data is None:
                self.answer(404, {}, X_Error_Code="EntryNotFound")
                return
            self.answer(200, data=data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        elif "someone/walker" in self.path:
            tree = [{"type": "file", "path": n, "size": len(d), "oid": COMMIT} for n, d in Hub.files.items()]
            facts = {"id": "someone/walker", "sha": COMMIT, "siblings": [{"rfilename": n} for n in Hub.files]}
            self.answer(200, tree if "/tree/" in self.path else facts)
        else:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    Hub.files.clear()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", address, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.chdir(tmp_path)
    yield address
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_a_policy_is_published_and_taken_by_somebody_else(
    hub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"num_envs": 2, "num_steps": 16, "minibatch_size": 32, "total_steps": 64, "eval_episodes": 3}
    run = surefoot.train("CartPole-v1", run_dir="run", quiet=True, **fields)
    assert main(["push", "run", "someone/walker"]) == 0
    assert capsys.readouterr().out == f"{hub}/someone/walker\n"
    assert Hub.files.keys() == {
        *("README.md", "curve.png", "evaluation.json", "metrics.jsonl", "policy.safetensors", "replay.mp4"),
        "settings.json",
    }
    front = yaml.safe_load(Hub.files["README.md"].decode().split("---")[1])
    assert {"reinforcement-learning", "CartPole-v1"} <= set(front["tags"])
    metric = front["model-index"][0]["results"][0]["metrics"][0]
    assert run.evaluation is not None
    assert metric["type"] == "mean_reward"
    assert metric["value"] == f"{run.evaluation.mean:.2f} +/- {statistics.pstdev(run.evaluation.scores):.2f}"
    assert str(tmp_path).encode() not in b"".join(Hub.files.values())  # nothing of this machine
    Hub.files["wild.pkl"] = b"a pickle"
    assert main(["pull", "someone/walker"]) == 0
    assert not (tmp_path / "walker" / "wild.pkl").exists()
    assert surefoot.evaluate("walker", episodes=3, seed=1).scores == run.evaluation.scores
    assert main(["pull", "someone/walker"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["pull", "someone/else"]) == 1
    assert "the Hugging Face Hub does not take or give 'someone/else'" in capsys.readouterr().err
    assert main(["push", "run", "no//name"]) == 2
    assert "USER/NAME is needed" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert main(["push", "run", "someone/walker"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("surefoot: the Hugging Face Hub does not take or give 'someone/walker'")
    assert said.count("\n") == 1
