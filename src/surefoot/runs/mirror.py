"""A run at an address (s3://, gs://, sftp://, file://, ..., by fsspec): a folder to work in, and the same files there.

A bucket has no lock that ends with its process. Instead the last command that starts has the run: it leaves its mark
there, and who finds another's in its place ends.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from surefoot.errors import DAMAGE, Fault, UserError, note, said
from surefoot.parallel.launch import PREFIX, rank_and_world
from surefoot.paths import absolute, is_address, named
from surefoot.runs.directory import newest
from surefoot.runs.files import LARGEST, LARGEST_STATED, Folder, below

WRITER, TAKEN = ".writer", "another command has taken over the run"
BESIDE = {"file", "local", "sftp", "ssh"}  # need folders, and show a file that is written over half; no bucket does
MOST = 16  # checkpoints that are brought here, the newest ones
CHECKPOINT = re.compile(r"checkpoints/([0-9]{1,19})/(state\.json|(?:policy|optimizer|envs)\.safetensors)")
OTHERS = r"config\.json|metrics\.jsonl|(?:best|policy)\.safetensors|evaluation\.json|curve\.png|game\.gif|report\.md"
FILES = re.compile(rf"{CHECKPOINT.pattern}|tb/events\.[\w.-]{{1,200}}|{OTHERS}", re.ASCII)  # no other is touched


def order(name: str) -> tuple[int, int, bool, str]:
    """Files as they are brought: rows before the checkpoint that stands for them, what makes it whole after its other
    files, and the report, which says that the run is over, at the very end."""
    part = CHECKPOINT.fullmatch(name)
    return 1 if part else 2 * (name == "report.md"), int(part[1]) if part else 0, name.endswith("/state.json"), name


def steps_of(names: Iterable[str]) -> list[int]:
    """The steps of the checkpoints that are whole, after -1."""
    parts = filter(None, map(CHECKPOINT.fullmatch, names))
    return [-1, *sorted(int(part[1]) for part in parts if part[2] == "state.json")]


def newest_at(run: Path | str) -> int:
    """The steps of the newest checkpoint of a run, in a directory or at an address; -1 where there is none."""
    return newest(run) if isinstance(run, Path) else steps_of(Mirror(run).list())[-1]


def place(run: Path | str | Mirror) -> tuple[Path, Mirror | None]:
    """The folder of a run that a user names; of one at an address a copy until the program's end, and its mirror."""
    if is_address(run):
        run = Mirror(run)
        atexit.register(run.close)
        run.fetch()
    return (run.folder, run) if isinstance(run, Mirror) else (absolute(run), None)


class Mirror:
    """A run at an address, and a copy of it in `folder`; `command`: the mark of the command that has the run.

    All that goes wrong there is a UserError; that the run is another's is a Fault.
    """

    def __init__(self, address: str, command: str = "") -> None:
        from fsspec.core import url_to_fs

        self.address, self.command, self.mark = address.rstrip("/"), command, command
        self.files, root = self.tried("opened", url_to_fs, self.address)
        self.root, protocols = root.rstrip("/"), self.files.protocol
        self.beside = bool(BESIDE & ({protocols} if isinstance(protocols, str) else {*protocols}))
        self.folder = Path(tempfile.gettempdir(), f"{PREFIX}run-{secrets.token_hex(8)}")
        named(self.folder, self.address)
        self.there: dict[str, int] | None = None  # what was there when both were the same
        self.brought = dict[str, Any]()  # files that are there as they are here
        self.fault: Fault | None = None  # the run is another's
        self.failed: Fault | None = None  # of the last try to bring what is new
        self.thread, self.moved = threading.Thread(), 0.0

    def tried(self, what: str, function: Callable[..., Any], *about: Any) -> Any:
        try:
            return function(*about)
        except Exception as error:
            if what == "read" and isinstance(error, FileNotFoundError):
                raise
            raise UserError(f"'{self.address}' cannot be {what} ({said(error)})") from error

    def list(self) -> dict[str, int]:
        """The run's files there, and their sizes; behind links there are none."""

        def failed(error: Exception) -> None:  # by default what cannot be listed is left out
            if not isinstance(error, FileNotFoundError):
                raise error

        def found() -> list[dict[str, Any]]:
            self.files.invalidate_cache()
            folders = self.files.walk(self.root, detail=True, on_error=failed)
            return [about for *_, files in folders for about in files.values() if about["type"] == "file"]

        plain = [about for about in self.tried("listed", found) if not about.get("islink")]
        names = {about["name"].removeprefix(f"{self.root}/"): int(about["size"]) for about in plain}
        return {name: size for name, size in names.items() if FILES.fullmatch(name)}

    def read(self, name: str, size: int) -> bytes:
        """As much of a file there as this, and a byte more; raises FileNotFoundError."""
        return bytes(self.tried("read", self.files.read_block, f"{self.root}/{name}", 0, size + 1))

    def write(self, name: str, data: bytes) -> None:
        """Write a file there whole or not at all."""
        path = f"{self.root}/{name}"
        if self.beside:
            self.tried("written", lambda: self.files.makedirs(path.rpartition("/")[0], exist_ok=True))
        self.tried("written", self.files.pipe_file, path + ".writing" * self.beside, data)
        if self.beside:
            self.tried("written", self.files.mv, f"{path}.writing", path)

    def fetch(self) -> None:
        """Have here what is there."""
        if (there := self.list()) == self.there:
            return
        self.folder.mkdir(0o700, exist_ok=True)
        with Folder(self.folder) as folder:
            for name in {name.partition("/")[0] for name in self.here()}:
                folder.remove(name)
        kept = steps_of(there)[-MOST:]
        for name, size in there.items():
            part = CHECKPOINT.fullmatch(name)
            if part and int(part[1]) not in kept:
                continue
            if size > (most := LARGEST_STATED if part else LARGEST):
                raise UserError(f"'{self.address}/{name}' has {size:,} bytes, and at most {most:,} are read")
            with suppress(FileNotFoundError):  # dropped meanwhile
                data = self.read(name, size)
                with below(self.folder, *name.split("/")[:-1], make=True) as folder:
                    folder.replace(Path(name).name, data)
        self.there, self.brought = there, self.here()

    def here(self) -> dict[str, tuple[int, int, int]]:
        """The run's files in the folder: size, time and number, of which one changes with the file."""
        found = {}
        for path in (Path(above, name) for above, _, names in os.walk(self.folder) for name in names):
            with suppress(OSError):  # dropped meanwhile
                name, about = path.relative_to(self.folder).as_posix(), path.lstat()
                if FILES.fullmatch(name) and path.is_file() and not path.is_symlink():
                    found[name] = about.st_size, about.st_mtime_ns, about.st_ino
        return found

    def take(self) -> None:
        """Have the run from now on: this command or, where it has the run already, this rank."""
        if self.command:
            self.require_mark(self.command)
        self.mark = f"{self.command} {secrets.token_hex(8)}".strip()
        self.command = self.command or self.mark
        self.write(WRITER, self.mark.encode())
        self.fetch()

    def __enter__(self) -> None:  # to be this command's
        if rank_and_world()[0] == 0:
            self.take()

    def __exit__(self, *_: object) -> None:  # the copy becomes what the ranks have left there
        with suppress(UserError):
            if not self.failed:
                self.fetch()

    def require_mark(self, mark: str) -> None:
        """Raise Fault where the run has another's mark, UserError where it has none."""
        try:
            found = self.read(WRITER, 200).decode(errors="replace")
        except FileNotFoundError:
            raise UserError(f"'{self.address}' is another place for {socket.gethostname()}: choose another") from None
        if not f"{found} ".startswith(f"{mark} "):
            self.fault = Fault(f"{TAKEN} '{self.address}', and goes on from what was saved there")
            raise self.fault

    def push(self) -> None:
        """Have there what is here, where the run is this rank's."""
        self.require_mark(self.mark)
        here, there = self.here(), self.list()
        if "config.json" not in here:
            raise UserError(f"the working copy '{self.folder}' is gone")
        for name in sorted(here, key=order):
            self.moved = time.monotonic()
            if self.brought.get(name) != here[name] or there.get(name) != here[name][0]:
                with suppress(*DAMAGE):  # dropped meanwhile
                    with below(self.folder, *name.split("/")[:-1]) as folder:
                        data = folder.read(Path(name).name)
                    self.write(name, data)
                    self.brought[name] = here[name]
        self.require_mark(self.mark)
        for name in sorted(there.keys() - here.keys(), key=order, reverse=True):
            self.tried("written", self.files.rm_file, f"{self.root}/{name}")
        self.there = {name: size for name, (size, *_) in here.items()}

    def try_to_push(self) -> None:
        try:
            self.push()
        except Exception as error:
            self.failed = Fault(error if isinstance(error, UserError) else said(error))
            if not self.fault:
                note(f"{self.failed}; it goes on and tries again")

    def save(self) -> None:
        """Bring what is new while the run goes on; where that fails, or takes as long, the next time brings it."""
        if not self.thread.is_alive():
            self.failed, self.moved = None, time.monotonic()
            self.thread = threading.Thread(target=self.try_to_push, daemon=True)
            self.thread.start()

    def finish(self, patience: float) -> Fault | None:
        """Bring all that is new; returns what is wrong where that fails, or there is no answer for so many seconds."""
        for begin in (self.save, lambda: None):
            while self.thread.is_alive() and time.monotonic() - self.moved <= patience:
                self.thread.join(0.2)
            begin()
        if self.thread.is_alive():
            self.failed = Fault(f"'{self.address}' has not answered for {patience:g} seconds")
        if self.failed and not self.fault:
            return Fault(f"{self.failed}; what is not there is kept in '{self.folder}' on {socket.gethostname()}")
        return self.fault

    def close(self) -> None:
        """Remove the copy, unless it holds what could not be brought there."""
        if not self.failed or self.fault:
            shutil.rmtree(self.folder, ignore_errors=True)


def bring(repo: str, folder: Path | str | None = None, revision: str | None = None) -> Path:
    """Copy the run at the address `repo` into `folder` (default: its last word); returns it. It has no revisions."""
    mirror = Mirror(repo)
    mirror.folder = absolute(folder or mirror.address.rpartition("/")[2])
    if mirror.folder.exists():
        raise UserError(f"'{mirror.folder}' is there already: name another folder with --into")
    if revision or not mirror.list():
        raise UserError(f"there is no such run at '{repo}'")
    mirror.fetch()
    return mirror.folder
