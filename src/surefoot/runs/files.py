"""The files of a run: no link is followed, only plain files are opened, and what is written is whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from surefoot.errors import UserError

if sys.platform != "win32":
    import fcntl

LARGEST = 1 << 30  # bytes of a file that is read, where its size is not known; a checkpoint's files may have more
LARGEST_STATED = 1 << 32
BY_HANDLE = {os.open, os.mkdir, os.rename, os.stat, os.unlink} <= os.supports_dir_fd  # not on Windows
NO_FOLLOW, AT_ONCE = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
NOT_PLAIN = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EINVAL, errno.ENOTDIR)


class Folder:
    """A folder held open, so that nothing can take its place: names are looked up in it, and links are not followed.

    `path` itself may lead through links, since a user named it; a folder `inside` may not. Where the system cannot look
    names up in an open folder they are checked before they are used.
    """

    def __init__(self, path: Path, above: Folder | None = None) -> None:
        self.path, self.handle = path, None
        if BY_HANDLE:
            flags = os.O_RDONLY | os.O_DIRECTORY | (NO_FOLLOW if above else 0)
            try:
                self.handle = os.open(path.name if above else path, flags, dir_fd=above.handle if above else None)
            except OSError as error:
                raise told(error) from None
        elif not path.is_dir() or (above and path.is_symlink()):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hold it no longer."""
        if self.handle is not None:
            os.close(self.handle)

    def at(self, name: str) -> str | Path:
        """`name` as the functions of `os` take it beside `dir_fd`."""
        return self.path / name if self.handle is None else name

    def inside(self, name: str, make: bool = False) -> Folder:
        """The folder `name` of this one."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(self.at(name), dir_fd=self.handle)
        return Folder(self.path / name, self)

    def names(self) -> list[str]:
        """All that is in it."""
        return os.listdir(self.path if self.handle is None else self.handle)

    def has(self, name: str, folder: bool = False) -> bool:
        """Whether there is a plain file, or a `folder`, of this name."""
        try:
            mode = os.stat(self.at(name), dir_fd=self.handle, follow_symlinks=False).st_mode
        except OSError:
            return False
        return stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)

    def descriptor(self, name: str, flags: int, mode: int = 0o666) -> int:
        """The plain file `name`, opened as by os.open; raises OSError where it is a link, a pipe or something else."""
        if not NO_FOLLOW and (self.path / name).is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self.path / name))
        try:
            return plain(
                os.open(self.at(name), flags | NO_FOLLOW | AT_ONCE, mode, dir_fd=self.handle), self.path / name
            )
        except OSError as error:
            raise told(error) from None

    def read(self, name: str, size: int | None = None) -> bytes:
        """A plain file's bytes, where it has `size` of them; raises ValueError otherwise."""
        try:
            return content(self.descriptor(name, os.O_RDONLY), size)
        except FileNotFoundError as error:
            raise ValueError("it is missing") from error
        except OSError as error:
            raise ValueError("it is no plain file" if error.errno in NOT_PLAIN else str(error.strerror)) from error

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, in the place of what is there; an OSError names it."""
        beside = f".{name}.writing"
        try:
            self.remove(beside)  # of a process that was killed, or laid there by somebody
            write(self, beside, data)
            os.replace(self.at(beside), self.at(name), src_dir_fd=self.handle, dst_dir_fd=self.handle)
        except OSError as error:
            with suppress(OSError):
                self.remove(beside)
            error.filename, error.filename2 = str(self.path / name), None
            raise
        self.sync()

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with all that is in it, where there is one."""
        try:
            os.unlink(self.at(name), dir_fd=self.handle)
        except FileNotFoundError:
            pass
        except OSError:
            shutil.rmtree(self.at(name), dir_fd=self.handle)

    def rename(self, name: str, to: str) -> None:
        """Give a file or folder another name."""
        os.rename(self.at(name), self.at(to), src_dir_fd=self.handle, dst_dir_fd=self.handle)

    def sync(self) -> None:
        """See its entries on the disk; where a folder cannot be opened, renaming needs no help."""
        if self.handle is not None:
            os.fsync(self.handle)


@contextmanager
def below(root: Path, *names: str, make: bool = False) -> Iterator[Folder]:
    """The folder `names` below `root`, of which each is a real folder; `make`: or becomes one."""
    with ExitStack() as stack:
        folder = stack.enter_context(Folder(root))
        for name in names:
            folder = stack.enter_context(folder.inside(name, make))
        yield folder


def told(error: OSError) -> OSError:
    """The same error, where it is one about links in words that say so."""
    if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):
        error.strerror = "it is a link, which is not followed, or no folder"
    return error


def plain(handle: int, path: Path) -> int:
    """The descriptor of a plain file; anything else is closed and an OSError."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return handle


def content(handle: int, size: int | None = None) -> bytes:
    """All of an open file, which is then closed; raises ValueError where it is too large or has not this `size`."""
    with os.fdopen(handle, "rb") as file:
        bytes_there = os.fstat(handle).st_size
        if size is not None and bytes_there != size:
            raise ValueError(f"it has {bytes_there} bytes instead of {size}")
        if bytes_there > (most := LARGEST if size is None else LARGEST_STATED):
            raise ValueError(f"it has {bytes_there:,} bytes, and at most {most:,} are read")
        return file.read(bytes_there)


def read_named(path: Path) -> bytes:
    """A file that a user named, and which may therefore be a link to a plain one; raises OSError or ValueError."""
    return content(plain(os.open(path, os.O_RDONLY | AT_ONCE), path))


def write(folder: Folder, name: str, data: bytes) -> None:
    """Write a file that is not there yet, and see it on the disk."""
    with os.fdopen(folder.descriptor(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """`Folder.replace`, for a file of a run directory."""
    with Folder(path.parent) as folder:
        folder.replace(path.name, data)


def write_folder(above: Folder, name: str, files: dict[str, bytes]) -> None:
    """Write a folder of files, whole or not at all; does nothing where it is there."""
    if above.has(name, folder=True):
        return
    for rest in above.names():
        if rest.startswith(".") and rest.endswith(".writing"):  # of a process that was killed
            with suppress(OSError):
                above.remove(rest)
    beside = f".{name}.writing"
    try:
        above.remove(name)  # a link or a file
        os.mkdir(above.at(beside), dir_fd=above.handle)
        with above.inside(beside) as folder:
            for file, data in files.items():
                write(folder, file, data)
            folder.sync()
        above.rename(beside, name)
    except OSError as error:
        with suppress(OSError):
            above.remove(beside)
        error.filename, error.filename2 = str(above.path / name), None
        raise
    above.sync()


def digest(data: bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def seal(facts: dict[str, Any]) -> bytes:
    """JSON with a digest of itself."""
    return json.dumps(facts | {"digest": digest(json.dumps(facts, sort_keys=True).encode())}, indent=1).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """What `seal` wrote; raises ValueError where it has been changed since."""
    facts = json.loads(data)
    if not isinstance(facts, dict) or facts.pop("digest", "") != digest(json.dumps(facts, sort_keys=True).encode()):
        raise ValueError("it has been changed since it was written")
    return facts


@contextmanager
def locked(folder: Folder, seconds: float) -> Iterator[None]:
    """Hold a folder's lock, which its process gives up however it ends; raises TimeoutError where another has it."""
    handle, deadline = folder.descriptor(".lock", os.O_RDWR | os.O_CREAT), time.monotonic() + seconds
    try:
        while True:
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                else:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(0.05)
        yield
    finally:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_UN)  # copies of this process, if there are any, hold it too
        os.close(handle)


def identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one that has taken its place; None where there is none."""
    try:
        status = os.stat(folder)
        return status.st_dev, status.st_ino
    except OSError:
        return None


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold a run directory, which is made where it is missing; raises UserError where another process holds it."""
    with ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(Folder(run_dir))
            stack.enter_context(locked(folder, 2.0))  # a killed run's processes may still be about to end
        except TimeoutError:
            raise UserError(f"another process is writing the run '{run_dir}': wait for it, or end it") from None
        except OSError as error:
            cannot = f"the run directory '{run_dir}' cannot be written ({error.strerror})"
            raise UserError(f"{cannot}: choose another --run-dir") from error
        yield
