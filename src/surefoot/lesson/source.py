"""The trainer's own source, as it runs, with its lines linked to formulas."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from surefoot.algorithm import advantages, objectives, train, update
from surefoot.lesson.pages import formula


class Note(NamedTuple):
    """What one line of a function is."""

    code: str  # a part of the line, which is there once
    latex: str
    text: str
    page: str = ""  # where the lesson explains it


LOOP: list[tuple[str, Callable[..., Any], list[Note]]] = [
    (
        "the loop, algorithm/train.py",
        train.train,
        [
            Note(
                "collect_rollout(",
                r"a_t \sim \pi(\cdot \mid s_t)",
                "Play: N games in parallel, T steps of each.",
                "noise",
            ),
            Note(
                "compute_advantages(", r"A_t", "How good was each action? Normalised as the Config says.", "normalizing"
            ),
            Note("annealed(", r"\varepsilon_i,\ c_e(i)", "Clip range and entropy coefficient of this iteration."),
            Note(
                "in batches(",
                r"K \text{ epochs} \times M \text{ minibatches}",
                "The same games, used several times.",
                "surrogate",
            ),
            Note("updates.append(update(", r"\theta \leftarrow \theta - \alpha \nabla L", "One step of the optimizer."),
            Note(
                "updates[-1].kl > cfg.target_kl",
                r"\mathrm{KL}(\pi_{old} \Vert \pi) > \text{target}",
                "Far enough: early stop.",
                "trust",
            ),
            Note("finish_iteration(state", r"", "Running statistics, counters, moving average of the parameters."),
        ],
    ),
    (
        "the loss, algorithm/update.py",
        update.ppo_loss,
        [
            Note(
                "logp = dist.log_prob",
                r"\log \pi'(a_t \mid s_t)",
                "The present policy's log probability of the old action.",
            ),
            Note(
                "policy_loss = ", r"-J_t", "The objective is maximised, the loss minimised: hence the sign.", "clipped"
            ),
            Note("value_loss = squared_error(", r"(V(s_t) - \hat R_t)^2", "Its target: A plus the old V.", "gae"),
            Note(
                "loss = policy_loss",
                r"L_t = -J_t + c_v L_{V,t} - c_e H(\pi(\cdot \mid s_t)) + \beta\, \mathrm{KL}_t",
                "Equation 9 of the paper, with signs turned; the KL penalty of its equation 8 is 0 if none is chosen.",
            ),
            Note("return loss.mean()", r"L = \frac{1}{B} \sum_t L_t", "A mean over the minibatch."),
        ],
    ),
    (
        "the objective, algorithm/objectives.py",
        objectives.ClippedSurrogate.__call__,
        [
            Note(
                "ratio = ",
                r"\rho_t = \frac{\pi'(a_t \mid s_t)}{\pi(a_t \mid s_t)}",
                "A difference of logarithms: no division by tiny numbers.",
                "importance",
            ),
            Note(
                "clipped = ",
                r"\mathrm{clip}(\rho_t, 1 - \varepsilon, 1 + \varepsilon)",
                "No further than ε.",
                "clipped",
            ),
            Note(
                "minimum(",
                r"J_t = \min\left(\rho_t A_t, \mathrm{clip}(\rho_t) A_t\right)",
                "The more careful of the two.",
                "clipped",
            ),
        ],
    ),
    (
        "the advantage, algorithm/advantages.py",
        advantages.gae,
        [
            Note(
                "delta = td_error",
                r"\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)",
                "0 for V after a termination, not after a truncation.",
                "gae",
            ),
            Note(
                "return discounted_sum",
                r"A_t = \delta_t + \gamma \lambda A_{t+1}",
                "One recurrence, cut where an episode ended.",
                "gae",
            ),
        ],
    ),
]


def find(lines: list[str], note: Note) -> int:
    """The number, from 0, of the one line of code that holds the note's part."""
    matches = [i for i, line in enumerate(lines) if note.code in line]
    if len(matches) != 1:
        raise LookupError(f"{note.code!r} is in {len(matches)} lines")
    return matches[0]


def html(_: str = "") -> str:
    """Every function of LOOP with its notes."""
    lexer, parts, count = PythonLexer(), [], 0
    for title, function, notes in LOOP:
        code = inspect.cleandoc("\n" + inspect.getsource(function))
        lines = code.splitlines()
        marks = {find(lines, note): note for note in notes}
        coloured = highlight(code, lexer, HtmlFormatter(nowrap=True)).splitlines()
        rows, items = [], []
        for i, line in enumerate(coloured):
            note = marks.get(i)
            if note is None:
                rows.append(f'<span class="row">{line}</span>')
                continue
            count += 1
            rows.append(
                f'<a class="row noted" id="line-{count}" href="#note-{count}" aria-label="line with note {count}">'
                f'<span class="tag">{count}</span>{line}</a>'
            )
            more = f' <a href="/{note.page}">more</a>' if note.page else ""
            math = formula(note.latex) if note.latex else ""
            items.append(
                f'<li id="note-{count}"><a class="tag" href="#line-{count}" aria-label="line {count}">{count}</a> '
                f"{math} <span>{escape(note.text)}{more}</span></li>"
            )
        listing = "".join(rows)
        parts.append(
            f'<section class="source"><h3>{escape(title)}</h3><div class="beside"><pre tabindex="0">'
            f'<code>{listing}</code></pre><ol class="notes">{"".join(items)}</ol></div></section>'
        )
    return "".join(parts)
