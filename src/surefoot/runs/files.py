"""Files and folders that are whole or absent, JSON that knows when it was changed, and who may write in a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from surefoot.errors import UserError


def write(path: Path, data: bytes) -> None:
    """Write a file and see it on the disk."""
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync(folder: Path) -> None:
    """See a folder's entries on the disk."""
    if os.name == "nt":  # where a folder cannot be opened, and renaming needs no help
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, in the place of the one that is there; an OSError names it."""
    beside = path.with_name(f".{path.name}.writing")
    try:
        beside.unlink(missing_ok=True)  # of a process that was killed; or a link, which is not followed
        write(beside, data)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None
        raise
    sync(path.parent)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files, whole or not at all; does nothing where it is there."""
    if folder.exists():
        return
    for rest in folder.parent.glob(".*.writing"):  # of a process that was killed
        shutil.rmtree(rest, ignore_errors=True)
    beside = folder.with_name(f".{folder.name}.writing")
    try:
        beside.mkdir(parents=True)
        for name, data in files.items():
            write(beside / name, data)
        sync(beside)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        error.filename, error.filename2 = str(folder), None
        raise
    sync(folder.parent)


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


def read_plain(path: Path, size: int | None = None) -> bytes:
    """A regular file's bytes, where it is not a link and, if `size` is given, has it; raises ValueError otherwise."""
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is missing" if not path.exists() else "it is no plain file")
    if size is not None and path.stat().st_size != size:
        raise ValueError(f"it has {path.stat().st_size} bytes instead of {size}")
    return path.read_bytes()


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Hold a run directory, which is made where it is missing; raises UserError where another process holds it."""
    from filelock import FileLock, Timeout

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / ".lock")
        lock.acquire(timeout=2)  # seconds: a killed run's processes may still be about to end
    except Timeout:
        raise UserError(f"another process is writing the run '{run_dir}': wait for it, or end it") from None
    except OSError as error:
        raise UserError(
            f"the run directory '{run_dir}' cannot be written ({error.strerror}): choose another --run-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()
