"""The lesson's server in this process: who gets in, what the pages hold, and that figures show computed numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from surefoot.algorithm.objectives import ClippedSurrogate, Surrogate
from surefoot.commands.cli import main
from surefoot.errors import UserError
from surefoot.lesson import quiz, source
from surefoot.lesson.cliff import ascend, average_reward, sample_episodes, step_gradients, true_gradient
from surefoot.lesson.exercises import Verdict
from surefoot.lesson.figures_records import CASES, RUNGS, record
from surefoot.lesson.guard import Guard, bind
from surefoot.lesson.pages import FIGURES, pages
from surefoot.lesson.server import lesson_app
from surefoot.lesson.svg import Axis, axis, number
from surefoot.lesson.widgets import Again, Choice, Slider
from surefoot.presets import LADDER
from surefoot.runs.metrics import NUMBERS

PORT, TOKEN = 8421, "the-token"
HOME = f"http://127.0.0.1:{PORT}"
OWN = {"origin": HOME}


@pytest.fixture(scope="module")
def app() -> Guard:
    return Guard(lesson_app(), PORT, TOKEN)


@pytest.fixture
def client(app: Guard) -> TestClient:
    """A browser that has opened the address with its token."""
    client = TestClient(app, HOME)
    assert client.get("/", params={"token": TOKEN}).status_code == 200
    return client


def values(name: str, **controls: object) -> dict[str, str]:
    """The numbers that a figure shows."""
    html = FIGURES[name].compute({key: str(value) for key, value in controls.items()})["values"]
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))


# Who gets in


def test_without_the_token_nothing_is_shown(app: Guard) -> None:
    for path in ("/", "/reinforce", "/static/lesson.js", "/figure/cliff", "/nowhere", "/reinforce?token=wrong"):
        answer = TestClient(app, HOME).get(path)
        assert answer.status_code == 403
        assert answer.text == "Open the address with its token, as surefoot has printed it."
        assert "set-cookie" not in answer.headers


def test_the_token_is_needed_once_and_then_in_a_cookie_that_scripts_cannot_read(app: Guard) -> None:
    client = TestClient(app, HOME)
    cookie = client.get("/reinforce", params={"token": TOKEN}).headers["set-cookie"]
    assert cookie == f"surefoot_{PORT}={TOKEN}; HttpOnly; SameSite=Strict; Path=/"
    assert client.get("/cliff").status_code == 200
    assert client.get("/cliff?token=wrong").status_code == 403


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", f"[::1]:{PORT}"])
def test_another_host_is_refused_even_with_the_token(client: TestClient, host: str) -> None:
    answer = client.get("/reinforce", params={"token": TOKEN}, headers={"host": host})
    assert answer.status_code == 403
    assert "127.0.0.1 and localhost alone" in answer.text


def test_localhost_is_our_name_too(app: Guard) -> None:
    assert TestClient(app, f"http://localhost:{PORT}").get("/cliff", params={"token": TOKEN}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"http://localhost:{PORT}", f"https://127.0.0.1:{PORT}"]
)
def test_a_foreign_origin_is_refused_on_every_request(client: TestClient, origin: str) -> None:
    for method, path in (("GET", "/cliff"), ("GET", "/figure/cliff"), ("POST", "/quiz")):
        answer = client.request(method, path, headers={"origin": origin}, json={})
        assert (answer.status_code, answer.text) == (403, "This request comes from a page of another site.")


def test_what_changes_something_needs_our_own_origin(client: TestClient) -> None:
    right = {"seed": "0", "returns": "2,1,1", "future": "-4", "total": "-4"}
    assert client.post("/quiz", json=right).status_code == 403
    assert client.post("/quiz", json=right, headers=OWN).status_code == 200


def test_websockets_are_guarded_before_they_open() -> None:
    opened = []

    async def talk(websocket) -> None:
        opened.append(1)
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    guarded = Guard(Starlette(routes=[WebSocketRoute("/talk", talk)]), PORT, TOKEN)
    cookie = {"cookie": f"surefoot_{PORT}={TOKEN}"}
    wrong = [
        OWN,
        cookie,
        cookie | {"origin": "https://evil.example"},
        cookie | OWN | {"host": "evil.example"},
        OWN | {"cookie": f"surefoot_{PORT}=wrong"},
    ]
    client = TestClient(guarded, HOME)
    for headers in wrong:
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            client.websocket_connect(f"ws://127.0.0.1:{PORT}/talk", headers=headers),
        ):
            pass
        assert refused.value.code == 1008
    assert opened == []
    with client.websocket_connect(f"ws://127.0.0.1:{PORT}/talk", headers=cookie | OWN) as websocket:
        assert websocket.receive_text() == "hello"


def test_every_answer_forbids_other_hosts_and_frames(client: TestClient) -> None:
    for answer in (
        client.get("/cliff"),
        client.get("/nowhere"),
        client.get("/static/lesson.js"),
        client.get("/x", headers={"host": "a"}),
    ):
        rules = answer.headers["content-security-policy"]
        assert rules.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "frame-ancestors 'none'" in rules
        assert set(re.findall(r"\w+://[^ ;]+", rules)) == {f"ws://127.0.0.1:{PORT}", f"ws://localhost:{PORT}"}
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_taken_port_gives_the_next_one_and_too_many_a_sentence(capsys, monkeypatch) -> None:
    with bind(18421) as first, bind(first.getsockname()[1]) as second:
        assert second.getsockname()[0] == "127.0.0.1"
        taken, following = (listener.getsockname()[1] for listener in (first, second))
        assert following > taken
        assert f"port {taken} is taken: using {following}" in capsys.readouterr().err
        monkeypatch.setattr("surefoot.lesson.guard.TRIES", 1)
        with pytest.raises(UserError, match=rf"ports {taken} to {taken} are taken: choose another --port"):
            bind(taken)


@pytest.mark.parametrize("port", ["0", "70000", "-1"])
def test_a_port_that_is_none_is_a_users_mistake(port: str, capsys) -> None:
    assert main(["lesson", f"--port={port}"]) == 2
    assert f"port is {port}; allowed is 1 to 65535" in capsys.readouterr().err


# Pages


def test_every_page_is_whole_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    order = list(pages())
    assert order[:8] == ["reinforce", "noise", "normalizing", "credit", "importance", "surrogate", "cliff", "clipped"]
    targets = set[str]()
    for name in order:
        text = client.get(f"/{name}").text
        assert "[[" not in text
        assert not re.search(r"\$|\\[a-z]", re.sub(r"<(code|pre|form|script)\b.*?</\1>", "", text, flags=re.S)), name
        assert set(re.findall(r'(?:src|href)="(\w+:[^"]*)"', text)) <= {"data:,"}
        assert "style=" not in text  # which the policy forbids
        targets |= set(re.findall(r'href="(/[^"]*)"', text))
        for control in re.findall(r'<(?:input|select|textarea)[^>]* id="([^"]+)"', text):
            assert f'for="{control}"' in text, control
    assert {f"/{name}" for name in order} < targets
    for target in targets - {f"/{name}" for name in order}:
        assert client.get(target).status_code == 200, target


def test_formulas_are_set_by_the_server(client: TestClient) -> None:
    text = client.get("/gae").text
    assert text.count("<math") > 10
    assert "<msub><mi>&#x003B4;</mi><mi>t</mi></msub>" in text  # delta_t


def test_the_first_page_is_shown_at_once(client: TestClient) -> None:
    """No redirect, since a Strict cookie would be left out of one that began on another site."""
    answer = client.get("/", follow_redirects=False)
    assert answer.text == client.get(f"/{next(iter(pages()))}").text


def test_an_unknown_page_and_figure_are_answered_with_a_sentence(client: TestClient) -> None:
    assert (client.get("/nowhere").status_code, client.get("/nowhere").text) == (404, "The lesson has no such page.")
    assert client.get("/figure/nowhere").status_code == 404
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/..%2fserver.py"):
        assert client.get(path).status_code == 404


def test_the_source_shown_is_the_one_that_runs() -> None:
    text = source.html()
    assert text.count('class="row noted"') == sum(len(notes) for _, _, notes in source.LOOP) > 12
    plain = re.sub(r"<[^>]+>", "", text)
    assert "while not ranks.any(callback.should_stop(state)):" in plain
    assert "ratio = (logp - logp_old).exp()" in plain
    for _, _, notes in source.LOOP:
        assert all(note.page in ("", *pages()) for note in notes)
    with pytest.raises(LookupError, match="is in 0 lines"):
        source.find(["a", "b"], source.Note("c", "", ""))
    with pytest.raises(LookupError, match="is in 2 lines"):
        source.find(["a", "a"], source.Note("a", "", ""))


# Figures


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_drawn_at_both_ends_of_each_control(name: str) -> None:
    figure = FIGURES[name]
    for key, control in figure.controls.items():
        ends = {Slider: lambda c: (c.low, c.high), Choice: lambda c: c.options, Again: lambda _: (0, 7)}[type(control)](
            control
        )
        for end in ends:
            parts = figure.compute({key: str(end), "width": "350"})
            assert parts["pictures"].count("<svg") >= 2
            assert not re.search(r"\b(nan|inf)\b", parts["pictures"] + parts["values"])
            assert parts["says"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("epsilon=7", "epsilon is '7'; allowed is 0.02 to 1"),
        ("epsilon=nan", "epsilon is 'nan'"),
        ("epsilon=<b>", "epsilon is &#x27;&lt;b&gt;&#x27;"),
        ("width=1e9", "width is '1e9'; allowed is 240 to 1200"),
    ],
)
def test_an_argument_out_of_range_is_refused(client: TestClient, query: str, sentence: str) -> None:
    answer = client.get(f"/figure/cliff?{query}")
    assert answer.status_code == 400
    assert sentence.replace("'", "&#x27;") in answer.text.replace("'", "&#x27;")


def test_the_cliff_shows_where_the_ascents_really_end() -> None:
    shown = values("cliff", epsilon=0.3, step=0.06, steps=25)
    for name, objective in (("surrogate", Surrogate()), ("clipped", ClippedSurrogate(0.3))):
        end = average_reward(ascend(objective, 25, 0.06)[-1])
        assert shown[f"after the steps, {name}"] == number(float(end))
    two = values(
        "cliff", step=0.02, steps=5, rounds=2
    )  # the second round's games are played where the first has led to
    there = float(ascend(ClippedSurrogate(0.2), 5, 0.02)[-1])
    end = average_reward(ascend(ClippedSurrogate(0.2), 5, 0.02, there)[-1])
    assert two["after the steps, clipped"] == number(float(end))
    later = values("cliff", rounds=3)
    assert float(later["after the steps, surrogate"]) < 0.5  # thrown back to where nobody walks
    assert float(later["after the steps, clipped"]) > 5
    assert "fell off the cliff; with ε = 0.3 it holds" in FIGURES["cliff"].compute({"epsilon": "0.3"})["says"]


def test_clipped_terms_and_their_slopes() -> None:
    # ratio 1.3, eps 0.2: min(1.3, 1.2) = 1.2, flat; for A = -1: min(-1.3, -1.2) = -1.3, slope -1
    assert values("clipped", ratio=1.3, epsilon=0.2) == {
        "objective, A = +1": "1.2",
        "slope, A = +1": "0",
        "objective, A = −1": "−1.3",
        "slope, A = −1": "−1",
    }
    # ratio 0.7: min(0.7, 0.8) = 0.7, slope 1; min(-0.7, -0.8) = -0.8, flat
    assert list(values("clipped", ratio=0.7, epsilon=0.2).values()) == ["0.7", "1", "−0.8", "0"]


def test_gae_by_hand_at_its_last_action() -> None:
    # delta = 1 + gamma V - 0.8, with V = 0.9 of what would have followed, or 0
    assert values("gae", gamma=1, gae_lambda=1)["A of the last action"] == "0.2"
    goes_on = FIGURES["gae"].controls["ending"].options[1]
    assert values("gae", gamma=1, gae_lambda=1, ending=goes_on)["A of the last action"] == "1.1"
    # lambda = 1, gamma = 1: the sum of all rewards, 2, minus V = 0.4
    assert values("gae", gamma=1, gae_lambda=1)["A of the first action"] == "1.6"
    assert values("gae", gamma=1, gae_lambda=0)["A of the first action"] == "0.2"  # 0 + 0.6 - 0.4


def test_importance_ratios_multiply() -> None:
    shown = values("importance", shift=0.5, length=1)
    # sigmoid(0.5) = 0.62246: 1.2449 = 0.62246 / 0.5 for a 1, 0.7551 for a 0
    assert shown["largest ratio of a single step"] == shown["largest factor of a trajectory"] == "1.24"
    assert shown["smallest"] == "0.755"
    few = [
        float(values("importance", shift=s, length=100)["effective samples of 1,000"].replace(",", ""))
        for s in (0, 0.2, 0.6)
    ]
    assert few[0] == 1000
    assert few == sorted(few, reverse=True)
    assert few[2] < 50


def test_parallel_games_halve_the_noise_at_four_times_as_many() -> None:
    one, four = (float(values("noise", games=n)["standard deviation of the estimate"]) for n in (4, 16))
    assert one / four == pytest.approx(2, rel=0.15)


def test_an_offset_spoils_raw_returns_and_leaves_normalised_ones_alone() -> None:
    plain, moved = (values("normalizing", offset=x) for x in (0, 20))
    assert plain["wrong sign, normalised"] == moved["wrong sign, normalised"]
    assert int(moved["wrong sign, raw R"].split()[0]) > 30 > int(moved["wrong sign, normalised"].split()[0])
    alike = FIGURES["normalizing"].compute({"theta": "2.5", "games": "2", "seed": "2"})
    assert "σ of R" in alike["values"]


def test_future_rewards_keep_the_mean_and_lower_the_spread() -> None:
    shown = values("credit", gamma=1, theta=0.3)
    assert (
        shown["mean gradient, total reward"] == shown["mean gradient, future reward"] == number(true_gradient(0.3, 0.0))
    )
    spread = [float(shown[f"σ of one game&#x27;s gradient, {name}"]) for name in ("future", "total")]
    assert spread[0] < 0.7 * spread[1]
    assert FIGURES["credit"].compute({})["says"].startswith("The gradient from future rewards is the same on average")
    shorter = values("credit", gamma=0, theta=0.3)
    assert (
        shorter["mean gradient, future reward"] == shown["mean gradient, future reward"]
    )  # here each step pays by itself


def test_gae_with_a_wrong_critic_is_unbiased_only_at_one() -> None:
    for gae_lambda, unbiased in ((1.0, True), (0.5, False)):
        shown = values("bias", error=2, gae_lambda=gae_lambda)
        assert (shown["mean of A"] == shown["true advantage"]) is unbiased
    exact = values("bias", error=0, gae_lambda=0)
    assert exact["mean of A"] == exact["true advantage"]


def test_the_surrogate_is_exact_where_it_touches() -> None:
    shown = values("surrogate", old=0.1, new=0.1)
    assert abs(float(shown["error"].replace("−", "-"))) < 1e-9
    assert shown["ratio π&#x27;/π of walking on"] == "1"
    assert float(values("surrogate", old=-0.4, new=1.5)["error"]) > 5


def test_the_trust_region_is_the_wider_one_for_rare_actions() -> None:
    assert "the trust region is the wider" in FIGURES["trust"].compute({"probability": "0.02"})["says"]
    assert "the clip range is the wider" in FIGURES["trust"].compute({"probability": "0.9"})["says"]


def test_one_games_gradient_is_the_sum_of_its_pushes() -> None:
    e = sample_episodes(0.3, 1, 4, 0.0)
    total = float(e.reward.sum())
    p = 1 / (1 + math.exp(-0.3))
    walk, stay = 1 - p, -p
    by_hand = total * sum(walk if a else stay for a in e.action[:, 0].tolist())
    assert values("one-game", theta=0.3, seed=4)["gradient from this game"] == number(by_hand)
    assert float(step_gradients(0.3, e.action, torch.full((12, 1), total).double()).sum()) == pytest.approx(by_hand)


# The quiz


def test_the_lessons_quiz_is_computed() -> None:
    right = {name: numbers for name, (numbers, _) in quiz.answers(0).items()}
    assert right == {"returns": [2, 1, 1], "future": [-4], "total": [-4]}  # by hand in test_quiz.py
    assert quiz.answers(0)["future"][1] == "−4 + 2 − 2"
    assert all(ok for ok, _ in quiz.check(0, {"returns": "2, 1, 1", "future": "−4", "total": "-4.0"}).values())


def test_wrong_answers_get_a_hint(client: TestClient) -> None:
    given = {"seed": 0, "returns": "1, 0, 1", "future": "4", "total": "-2"}
    verdicts = client.post("/quiz", json=given, headers=OWN).json()
    assert [verdict["right"] for verdict in verdicts.values()] == [False, False, False]
    assert "the sign is not" in verdicts["future"]["says"]
    assert "its total reward times" in verdicts["total"]["says"]
    assert "this step's own included" in verdicts["returns"]["says"]


@pytest.mark.parametrize(
    ("data", "status", "sentence"),
    [
        ('{"seed": "0", "returns": "two"}', 400, "&#x27;two&#x27; is no number"),
        ('{"seed": "-1"}', 400, "is no number of a game"),
        ("[]", 400, "no JSON object"),
        ("{", 400, "no JSON object"),
        ("[" * 50_000, 400, "no JSON object"),
        ("x" * 200_000, 413, "too long"),
    ],
)
def test_a_quiz_that_is_none_is_answered_with_a_sentence(
    client: TestClient, data: str, status: int, sentence: str
) -> None:
    answer = client.post("/quiz", content=data, headers=OWN)
    assert answer.status_code == status
    assert sentence in answer.text


def test_another_game_has_other_answers(client: TestClient) -> None:
    assert 'data-seed="3"' in client.get("/quiz/3").text
    assert len({str(quiz.answers(seed)) for seed in range(1, 9)}) > 4
    assert client.get("/quiz/x").status_code == 400


# Exercises, records, the reader's own run


def test_an_exercises_verdicts_are_passed_on(client: TestClient, monkeypatch) -> None:
    def check(name: str, source: str) -> list[Verdict]:
        return [Verdict("a law", False, f"{name}: {source}", "a known mistake"), Verdict("another", True)]

    monkeypatch.setattr("surefoot.lesson.exercises.check", check)  # which test_exercises.py and the browser's test run
    verdicts = client.post("/exercise/surrogate", json={"source": "pass"}, headers=OWN).json()
    first = {"law": "a law", "passed": False, "message": "surrogate: pass", "mistake": "a known mistake"}
    assert verdicts == [first, {"law": "another", "passed": True, "message": "", "mistake": ""}]


def test_an_exercise_needs_our_origin_and_a_known_name(client: TestClient) -> None:
    assert client.post("/exercise/surrogate", json={"source": ""}).status_code == 403
    answer = client.post("/exercise/nothing", json={"source": ""}, headers=OWN)
    assert answer.status_code == 400
    assert "choose one of future_return" in answer.text


def test_pongs_curves_are_those_of_the_records() -> None:
    root = Path(__file__).parent.parent / "bench" / "records"
    for name, runs in record("pong").items():
        for run in runs:
            rows = [json.loads(line) for line in (root / run["source"]).read_text().splitlines()]
            rows = [row for row in rows if row["return_mean"] is not None]
            assert run["frames"] == [(4 if name == "pong" else 8) * row["step"] for row in rows]
            assert run["return_mean"] == pytest.approx([row["return_mean"] for row in rows], abs=1e-4)
    assert values("pong", until=10.4)["pong-lesson, last"] == "1.01"
    assert values("pong", until=0.2)["pong, last"] == "−20.1"


@pytest.mark.parametrize("name", ["ladder", "ladder-pong"])
def test_the_ladders_curves_are_those_of_the_record_and_of_the_presets(name: str) -> None:
    folder = "2026-11-30_ladder-pong" if name == "ladder-pong" else "2026-11-30_ladder-quick"
    root = Path(__file__).parent.parent / "bench" / "records" / folder
    assert record(name) == json.loads((root / "ladder.json").read_text())
    assert [r["rung"] for r in record(name)["rungs"]] == [cfg.task for cfg in LADDER] == list(RUNGS)
    shown = values(name, rung="surrogate")
    scores, worth = ("−1.15, 2.31, −1.04", "100 %") if name == "ladder-pong" else ("−1.98, −2.16, −1.8", "60 %")
    assert shown["surrogate: scores of the seeds"] == scores
    assert shown["surrogate: least effective samples"] == worth
    assert next(iter(values(name))) == "reinforce: scores of the seeds"


def test_the_cases_of_is_this_normal_are_those_of_the_record() -> None:
    root = Path(__file__).parent.parent / "bench" / "records" / "2026-11-30_normal"
    commands = json.loads((root / "commands.json").read_text())
    assert list(CASES) == list(record("normal")) == list(commands)
    for name, case in record("normal").items():
        assert case["command"] == commands[name]
        rows = [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]
        for key, column in case["columns"].items():
            assert column == pytest.approx([row[key] for row in rows], rel=1e-3), (name, key)
    # what the sentences claim
    last = {
        name: {key: column[-1] for key, column in case["columns"].items()} for name, case in record("normal").items()
    }
    assert last["healthy"]["return_mean"] > 475
    assert all(last[name]["return_mean"] < 0.5 * last["healthy"]["return_mean"] for name in list(CASES)[1:])
    assert last["rate-too-large"]["entropy"] < 1e-4
    assert record("normal")["rate-too-large"]["columns"]["kl"][0] > 14
    assert max(record("normal")["rate-too-small"]["columns"]["kl"]) < 1e-4
    assert record("normal")["off-the-cliff"]["columns"]["kl"][0] > 1
    assert last["too-much-entropy"]["entropy"] > 0.6
    assert abs(last["no-critic"]["explained_variance"]) < 0.05


def test_a_run_of_the_readers_that_is_empty_then_grows_then_is_deleted(tmp_path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    client = TestClient(Guard(lesson_app(run), PORT, TOKEN), HOME)
    assert "has not finished its first iteration yet" in client.get("/pong", params={"token": TOKEN}).text
    row = json.dumps(dict.fromkeys(NUMBERS, 1) | {"step": 100, "return_mean": 3.25, "kl": None})
    (run / "metrics.jsonl").write_text(row + '\n{"step": 200, "return_me')  # as it is being written
    assert client.get("/figure/own").json()["says"] == "score is 3.25 after 100 steps."
    assert client.get("/figure/own?what=KL%20divergence").json()["says"] == "The run has no such number yet."
    shutil.rmtree(run)
    answer = client.get("/figure/own")
    assert (answer.status_code, answer.text) == (400, f"there is no run directory &#x27;{run}&#x27; any more")
    assert client.get("/pong").status_code == 200


def test_without_a_run_the_page_says_how_to_name_one(client: TestClient, capsys) -> None:
    assert "surefoot lesson --run RUN" in client.get("/pong").text
    assert main(["lesson", "--run", "nowhere"]) == 2
    assert "there is no run directory 'nowhere'" in capsys.readouterr().err


# Many, and the plot's numbers


def test_fifty_clients_are_served(app: Guard) -> None:
    def visit(k: int) -> bool:
        client = TestClient(app, HOME)
        answers = [client.get("/clipped", params={"token": TOKEN}), client.get(f"/figure/clipped?ratio={1 + k / 100}")]
        return all(answer.status_code == 200 for answer in answers)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(visit, range(50)))


def test_numbers_for_people_and_round_ticks() -> None:
    assert [number(x) for x in (0.0, -1.5, 0.25, 1234.4, 123456.0, 1e-5)] == [
        "0",
        "−1.5",
        "0.25",
        "1,234",
        "1.23e+05",
        "1.00e−05",
    ]
    assert Axis("", -0.3, 2.2).ticks(5) == [0, 0.5, 1, 1.5, 2]
    assert axis("", [1.0, float("nan"), 3.0]) == Axis("", 0.9, 3.1)
    assert axis("", [2.0, 2.0]) == Axis("", 1.8, 2.2)
    assert axis("", [float("inf")]) == Axis("", 0.0, 1.0)
