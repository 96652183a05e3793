"""A file never names code: which environments are made because a file says so, and which only where a user agrees."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import EnvSpec
from surefoot.envs.makers import OURS
from surefoot.errors import UserError
from surefoot.paths import shown
from surefoot.runs.files import Folder, locked

PLAIN = re.compile(r"""[A-Za-z_]\w*=(?:[+-]?\w[\w.+-]*|'\w[\w.-]*'|"\w[\w.-]*")""", re.ASCII)  # numbers and words

HARMLESS = re.compile(  # wrappers that compute only, with plain arguments
    r"(?!Record|Human|Render)\w+(?::\w+=[\w.-]+(?:,\w+=[\w.-]+)*)?", re.ASCII
)


def runs_code(env: EnvSpec) -> str:
    """What making an environment would run beside surefoot, Gymnasium and ALE; empty where that is nothing.

    Nothing is imported to find it out: an id is looked up among those that Gymnasium has already.
    """
    if not isinstance(env, Gymnasium):
        return ""
    import gymnasium

    from surefoot.envs.ids import registered

    spec = gymnasium.registry.get(registered(env.id) or "")
    odd = [text for text in env.kwargs if not PLAIN.fullmatch(text)]
    odd += [text for text in env.wrappers if not HARMLESS.fullmatch(text)]
    unknown = spec is None and not re.search("[:#]", env.id)  # which is refused by itself
    points = [str(spec.entry_point), str(spec.vector_entry_point or OURS[0])] if spec else []
    known = spec and isinstance(spec.entry_point, str) and not spec.additional_wrappers
    if (unknown or (known and all(point.startswith(OURS) for point in points))) and not odd:
        return ""
    module, _, name = env.id.rpartition(":")
    verb = "make" if re.search(r"-v\d+$", name) else "call"
    what = f"import {module} and {verb} {name}" if module else f"make {env.id}"
    what += f" with {' '.join((*env.kwargs, *env.wrappers))}" if env.kwargs or env.wrappers else ""
    what += f", which is {points[0]}" if spec else ""
    return ascii(what[:200])[1:-1]


def permit(env: EnvSpec, file: Path, trust: bool, seals: Sequence[tuple[Path, object]], cure: str) -> None:
    """Raise UserError where the environment that `file` describes would run code and nobody has agreed to that.

    `trust`: the user has; `seals`: run directories, and what may be the `own_seal` of the environment in them.
    """
    what = runs_code(env)
    if what and not trust and not any(isinstance(begun, str) and is_own(run, env, begun) for run, begun in seals):
        raise UserError(f"'{shown(file)}' asks to {what}, and no run begun here wrote it: where you trust it, {cure}")


def own_seal(run_dir: Path, env: EnvSpec) -> str:
    """What a run writes beside its environment's description, and only this user can; empty where there is no key.

    HMAC-SHA-256 over the directory, as its real path and number on the disk, and the description.
    """
    try:
        key = user_key()
        place = [os.path.realpath(run_dir), os.stat(run_dir).st_ino]
    except (OSError, ValueError, RuntimeError, TimeoutError):
        return ""
    fields = {name: value for name, value in asdict(env).items() if name not in ("wrappers", "remake") or value}
    message = json.dumps(["surefoot run", *place, type(env).__name__, fields], sort_keys=True).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def is_own(run_dir: Path, env: EnvSpec, begun: str) -> bool:
    """Whether the run was begun by this user, in this directory, with this environment."""
    return begun.isascii() and begun != "" and hmac.compare_digest(own_seal(run_dir, env), begun)


def user_key() -> bytes:
    """32 random bytes that only this user can read, made where there are none; raises OSError or ValueError."""
    where = state_dir()
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Folder(where) as folder:
        private(os.stat(where if folder.handle is None else folder.handle))
        if not folder.has("key"):
            with locked(folder, 2.0):
                if not folder.has("key"):
                    folder.remove("new")
                    handle = folder.descriptor("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(handle, "wb") as file:
                        file.write(secrets.token_bytes(32))
                    folder.rename("new", "key")
        private(os.stat(folder.at("key"), dir_fd=folder.handle, follow_symlinks=False))
        return folder.read("key", 32)


def private(status: os.stat_result) -> None:
    """Raise ValueError where others than this user may read or write."""
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077):
        raise ValueError("others have access to it")


def state_dir() -> Path:
    """Where this user's programs keep what they remember."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local", "surefoot")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "surefoot"
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".local" / "state") / "surefoot"
