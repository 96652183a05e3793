"""What a wrong command line is answered with: one sentence, in this program's words."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Sequence
from typing import Any

from surefoot.algorithm.objectives import TrustRegion
from surefoot.config import Config
from surefoot.models.memory import GRU
from surefoot.other_words import kebab, on_command_line


def sentence(complaint: str, command: type, default: Any, args: Sequence[str]) -> str:
    """Tyro's error message on these arguments, which it prints in a box, as one sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]|-{4,}", " ", complaint)
    text = re.sub(r"\s+", " ", text).strip()
    unknown = re.search(r"Unrecognized (?:or misplaced )?options: (\S+?)(?:=\S*)?,? ", text + " ")
    if unknown:
        known, here = options(default or command), on_command_line(unknown[1], getattr(default, "config", None))
        part = unknown[1].removeprefix("--").partition(".")[0]
        kinds = {f"{part}:{kebab(kind.__name__)}": kind for kind in choices(part)}
        fields = [f for word in args if word in kinds for f in dataclasses.fields(kinds[word])]
        chosen = [f"--{part}.{kebab(f.name)}" for f in fields]
        near = difflib.get_close_matches(unknown[1], chosen or known, 1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the options"
        if unknown[1] in chosen:
            hint = f"it comes after {part}:NAME, which chooses the part"
        if here and (default is not None or here in known):
            hint = f"surefoot calls it {here}"
        elif unknown[1] in known:
            hint = "the part that was chosen lacks it; --help after the choice lists the options"
        return f"there is no option {unknown[1]}: {hint}"
    text = re.sub(r"^(Parsing error|Value error|Missing from|Required options) ", "", text)
    return re.split(r" (?:Argument helptext|For full helptext|Available subcommands|Perhaps you meant)", text)[0]


def choices(part: str) -> list[Any]:
    """The dataclasses that a Config can choose from for a part, by its name on the command line."""
    kind = typing.get_type_hints(Config).get(part.replace("-", "_"))
    return [choice for choice in typing.get_args(kind) if dataclasses.is_dataclass(choice)]


def options(value: Any, prefix: str = "") -> list[str]:
    """The option names of a command and of the parts that its Config has chosen."""
    names = []
    for f in dataclasses.fields(value):
        name = "from" if f.name == "source" else f.name.replace("_", "-")
        part = getattr(value, f.name, None)
        if isinstance(part, Config):
            names += options(part)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            names += options(part, f"{name}.")
        else:
            names.append(f"--{prefix}{name}")
            if isinstance(part, bool):
                names.append(f"--{prefix}no-{name}")
    return names


def following(args: Sequence[str], option: str) -> list[str]:
    """The values of an option that takes several."""
    args = [part for word in args for part in (word.split("=", 1) if word.startswith("--") else [word])]
    names = [word.replace("_", "-") for word in args]
    given = args[names.index(option) + 1 :] if option in names else []
    return list(itertools.takewhile(lambda text: not text.startswith("--"), given))


def with_choices(args: Sequence[str], config: Config) -> list[str]:
    """The arguments, with the part that is chosen before `--PART.no-NAME`: tyro knows that only after a choice."""
    words = list[str]()
    for word in args:
        part = word.removeprefix("--").partition(".no-")[0]
        chosen = getattr(config, part.replace("-", "_"), None)
        if ".no-" in word and chosen and not any(w.startswith(f"{part}:") for w in (*words, *args)):
            words.append(f"{part}:{kebab(type(chosen).__name__)}")
        words.append(word)
    return words


def timeout_in(args: Sequence[str]) -> dict[str, Any]:
    """`--timeout`, which holds for a first look at the environment too, before the options are known."""
    for word, after in itertools.pairwise([*args, ""]):
        name, equals, value = word.partition("=")
        if name == "--timeout":
            with contextlib.suppress(ValueError):  # it is complained of later
                return {"timeout": float(value if equals else after)}
    return {}


def number(args: Sequence[str], option: str) -> int:
    """The whole number given for an option; 0 where there is none."""
    return int(*filter(str.isdecimal, following(args, option)[:1]))


def expected(args: Sequence[str]) -> dict[str, Any]:
    """What other options' defaults depend on: `--num-envs`, `--num-steps`, `--noise-color`, a memory and TRPO."""
    steps = tuple(int(text) for text in following(args, "--num-steps") if text.isdecimal())
    known: dict[str, Any] = {"num_envs": number(args, "--num-envs")}
    if min(steps, default=0):
        known["num_steps"] = steps
    if any(following(args, "--noise-color")):
        known["noise_color"] = None
    if "objective:trust-region" in args and not any(text.startswith("network:") for text in args):
        known["objective"] = TrustRegion()
    if {"memory:gru", "memory:lstm"} & {*args}:
        known["memory"] = GRU(length=number(args, "--memory.length"))
    return known
