"""ONNX: the exported graph sees what the environment shows and answers what the policy answers."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import surefoot
from browser import chromium, needs_chromium
from helpers import TINY, block_with
from surefoot.commands.cli import main
from surefoot.connect.export import Graph, as_bytes, feed, to_onnx
from surefoot.envs.atari import Atari, Pong
from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import make
from surefoot.envs.spaces import own_row
from surefoot.models.distributions import Mixed
from surefoot.models.layers import RunningNorm
from surefoot.models.memory import GRU, LSTM, NoMemory
from surefoot.models.networks import MLP, ImpalaCNN, LessonCNN, NatureCNN, SmallCNN
from surefoot.models.policy import Policy

ORT_WEB = Path(__file__).parent.parent / "node_modules" / "onnxruntime-web" / "dist"
LESSON = Pong(actions=("LEFTFIRE", "RIGHTFIRE"), palette=True)
CASES = [
    *((Gymnasium(f"worlds:{name}-v0"), MLP(running=True)) for name in ("Target", "Switches", "Doors", "Nested")),
    (Gymnasium("Pendulum-v1"), MLP((32,), running=True)),
    (Gymnasium("CartPole-v1"), MLP()),
    (Gymnasium("Blackjack-v1"), MLP()),  # a Tuple of choices
    (Gymnasium("FrozenLake-v1"), MLP()),
    (Gymnasium("Taxi"), MLP()),  # a mask in its info
    (Gymnasium("makers:make_all"), SmallCNN()),  # a picture, numbers, choices and a mask; to act: a Dict of everything
    (Gymnasium("makers:Image"), NatureCNN()),
    (Pong(), SmallCNN(hidden=32)),
    (LESSON, LessonCNN(critic=True)),
    (Gymnasium("makers:make_all"), NatureCNN(separate_critic=True)),
    (LESSON, LessonCNN()),
    (Gymnasium("CartPole-v1"), (MLP((16,)), GRU(8))),
    (Pong(), (SmallCNN(hidden=32), LSTM(8))),
    (Atari("breakout"), NatureCNN()),
    (Atari("breakout"), ImpalaCNN()),
]
NAMES = [f"{getattr(env, 'id', type(env).__name__)}-{type(network).__name__}" for env, network in CASES]


def played(env: Any, network: Any, steps: int = 6) -> tuple[Policy, list[tuple[Any, Any]]]:
    """A policy with random weights, and own observations of the environment, each with the mask of its info."""
    game, rng = make(env), np.random.default_rng(0)
    torch.manual_seed(0)
    network, memory = network if isinstance(network, tuple) else (network, NoMemory())
    policy = memory.build(network.build(game.observation_space, game.action_space))
    policy.spaces = game.observation_space, game.action_space
    if policy.memory is not None:
        nn.init.normal_(policy.memory.add.weight)  # it has learned to remember
    policy.actor.weight.data.mul_(100)  # no longer nearly uniform
    for norm in policy.modules():
        if isinstance(norm, RunningNorm):
            size = len(norm.mean)
            norm.assign(torch.tensor(9.0), torch.randn(size).double(), 1 + torch.rand(size).double() * 20)
    seen = list[tuple[Any, Any]]()
    if not isinstance(env, Gymnasium):
        row = np.zeros(game.observation_space.shape, np.uint8)
        game.reset(3, row)
        for _ in range(steps):
            seen.append((row.copy(), None))
            game.step(policy.act(row, rng=rng), row)
    else:
        obs, info = game.env.reset(seed=3)  # type: ignore[attr-defined]
        for _ in range(steps):
            mask = info.get("action_mask")
            seen.append((obs, mask))
            obs, _, over, cut, info = game.env.step(policy.act(obs, mask=mask, rng=rng))  # type: ignore[attr-defined]
            if over or cut:
                obs, info = game.env.reset()  # type: ignore[attr-defined]
    game.close()
    return policy.eval(), seen


def fed(policy: Policy, obs: Any, mask: Any) -> dict[str, Any]:
    assert policy.spaces is not None
    return feed(policy.spaces[0], obs if mask is None else {"observation": obs, "action_mask": mask})


def assert_alike(policy: Policy, seen: list[tuple[Any, Any]], ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """What `ask` answers to each own observation is what the policy does; one after the other, as in an episode."""
    assert policy.spaces is not None
    policy.reset()
    memory, theirs = None, np.zeros((1, policy.memory.width if policy.memory else 0), np.float32)
    for obs, mask in seen:
        row = fed(policy, obs, mask) | ({"memory": theirs} if policy.memory else {})
        got = ask(row)
        theirs = got.get("next_memory", theirs)
        with torch.no_grad():
            dist, value, memory = policy(torch.from_numpy(own_row(*policy.spaces, obs, mask)[None]), memory)
        assert got["value"] == pytest.approx(value.numpy(), abs=1e-5, rel=1e-5)
        params: Any = dist.parts if isinstance(dist, Mixed) else (dist, dist)
        if "probabilities" in got:
            assert got["probabilities"] == pytest.approx(params[0].probabilities().numpy(), abs=1e-5)
            if mask is not None:
                assert not got["probabilities"][0][np.asarray(mask) == 0].any()
        if "mean" in got:
            assert got["mean"] == pytest.approx(params[1].mean.numpy(), abs=1e-5)
            assert got["std"] == pytest.approx(params[1].log_std.exp().numpy(), abs=1e-5)
        flat = dict(leaf_values(policy.act(obs, greedy=True, mask=mask)))
        assert flat.keys() == {name for name in got if name.startswith("action")}
        for name, action in flat.items():
            assert got[name].dtype == np.asarray(action).dtype
            assert got[name][0] == pytest.approx(np.asarray(action), abs=1e-5)


def leaf_values(action: Any, name: str = "action") -> Any:
    if isinstance(action, dict | tuple):
        for key, inner in action.items() if isinstance(action, dict) else enumerate(action):
            yield from leaf_values(inner, f"{name}.{key}")
    else:
        yield name, action


@pytest.mark.parametrize(("env", "network"), CASES, ids=NAMES)
def test_the_graph_answers_as_the_policy_does(env: Any, network: Any) -> None:
    policy, seen = played(env, network)
    graph = Graph(policy).eval()

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            found = graph(*map(torch.from_numpy, row.values()))
        return {name: x.numpy() for name, x in zip(graph.outputs, found, strict=True)}

    assert_alike(policy, seen, ask)


@pytest.mark.slow
@pytest.mark.parametrize(("env", "network"), CASES, ids=NAMES)
def test_onnxruntime_answers_as_the_policy_does(env: Any, network: Any) -> None:
    import onnxruntime

    policy, seen = played(env, network)
    graph, rows = Graph(policy).eval(), [fed(policy, obs, mask) for obs, mask in seen]
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    if policy.memory is not None:
        batch["memory"] = np.random.default_rng(0).normal(size=(len(rows), policy.memory.width)).astype(np.float32)
    session = onnxruntime.InferenceSession(as_bytes(to_onnx(graph, tuple(map(torch.from_numpy, batch.values())))))

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(graph.outputs, session.run(graph.outputs, row), strict=True))

    assert_alike(policy, seen, ask)
    together = session.run(graph.outputs, batch)  # any number at once
    apart = [ask({name: x[k : k + 1] for name, x in batch.items()}) for k in range(len(rows))]
    for name, x in zip(graph.outputs, together, strict=True):
        assert x == pytest.approx(np.concatenate([one[name] for one in apart]), abs=1e-5), name


@pytest.mark.slow
def test_the_readmes_way_from_a_run_to_an_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    surefoot.train("Pendulum-v1", run_dir="runs/pendulum", quiet=True, **{**TINY, "eval_episodes": 0})
    assert main(["export", "runs/pendulum"]) == 2
    assert main(["export", "runs/pendulum", "--onnx", "policy.pt"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("surefoot: name what to write: --onnx FILE or --minari DATASET\n")
    assert said.endswith("surefoot: 'policy.pt' must end in .onnx\n")
    assert main(["export", "runs/pendulum", "--onnx", "policy.onnx"]) == 0
    found = re.fullmatch(r"policy.onnx, which differs from PyTorch by at most (\S+)\n", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) < 1e-5
    meta = onnxruntime.InferenceSession("policy.onnx").get_modelmeta().custom_metadata_map
    assert (meta["task"], meta["surefoot"], meta["steps"]) == ("Pendulum-v1", surefoot.__version__, "48")
    assert meta["action_space"] == "Box(-2.0, 2.0, (1,), float32)"
    names: dict[str, Any] = {}
    exec(block_with("onnxruntime.InferenceSession"), names)
    assert names["truncated"]
    policy = surefoot.load("runs/pendulum").policy
    action = names["session"].run(["action"], {"obs": names["obs"][None]})[0][0]
    assert action == pytest.approx(policy.act(names["obs"], greedy=True), abs=1e-5)


@pytest.mark.long
@needs_chromium
@pytest.mark.skipif(not ORT_WEB.is_dir(), reason="no onnxruntime-web: npm install --prefix . --no-save onnxruntime-web")
@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_the_page_of_the_documentation_acts_as_the_policy_does(task: str, tmp_path: Path) -> None:
    """In Chromium, with onnxruntime-web, on observations of the environment."""
    surefoot.train(task, run_dir=tmp_path / "run", quiet=True, **{**TINY, "eval_episodes": 0})
    surefoot.export(tmp_path / "run", tmp_path / "policy.onnx")
    policy = surefoot.load(tmp_path / "run").policy
    (tmp_path / "index.html").write_text(block_with("ort.InferenceSession.create"))
    (tmp_path / "ort").symlink_to(ORT_WEB, target_is_directory=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    space = surefoot.configure(task).env.make().observation_space
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_function("() => window.act !== undefined")
        for seed in range(20):
            space.seed(seed)
            obs = space.sample().clip(-5, 5)
            action = page.evaluate("obs => window.act(obs)", obs.tolist())
            assert action == pytest.approx(np.ravel(policy.act(obs, greedy=True)), abs=1e-5)
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("memory", [GRU(8), LSTM(8)], ids=["gru", "lstm"])
def test_a_run_with_a_memory_is_exported(tmp_path: Path, memory: Any) -> None:
    from surefoot.connect.export import export

    surefoot.train("Pendulum-v1", run_dir=tmp_path / "a", quiet=True, memory=memory, **{**TINY, "eval_episodes": 0})
    assert export(tmp_path / "a", tmp_path / "a.onnx")[1] < 1e-5


@pytest.mark.slow
def test_a_policy_of_pictures_in_float64_is_exported_in_single_precision(tmp_path: Path) -> None:
    """As where a package has made float64 PyTorch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        surefoot.train("makers:Image", run_dir=tmp_path / "a", quiet=True, **{**TINY, "eval_episodes": 0})
        assert surefoot.export(tmp_path / "a", tmp_path / "a.onnx") == tmp_path / "a.onnx"
    finally:
        torch.set_default_dtype(before)
