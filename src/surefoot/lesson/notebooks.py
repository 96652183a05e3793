"""Execute a notebook from its first cell to its last, with the old lesson's modules: `surefoot notebook FILE`.

It writes the executed notebook beside the old one, which works in a terminal, over ssh and in a test, and opens
anywhere; to work in a notebook interactively, import `surefoot.lesson.old_names` in its first cell.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from surefoot.errors import Fault, UserError

SLOW = 600  # seconds that a busy machine may take to start the notebook's process
FIRST_CELL = "import surefoot.lesson.old_names"


def execute(file: Path, out: Path | None = None, settings: Sequence[str] = ()) -> Path:
    """Execute the notebook `file` and write it to `out` (default: FILE-executed.ipynb); returns that path.

    `settings`: NAME=VALUE, assigned after each cell tagged "parameters", or before the first one. Paths in the notebook
    are relative to its folder. Raises UserError for a mistake, and Fault where a cell raises; what was executed until
    then is written all the same.
    """
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        raise UserError("to execute notebooks: pip install 'surefoot[notebook]'") from error
    nbformat: Any = import_module("nbformat")  # it has no types
    assignments = "\n".join(_assignment(text) for text in settings)
    book = _read(file)
    out = out or file.with_name(f"{file.stem}-executed.ipynb")
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source = _today(cell.source)
    if assignments:
        tagged = [i + 1 for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())]
        for i in reversed(tagged or [0]):
            book.cells.insert(i, nbformat.v4.new_code_cell(assignments))
    book.cells.insert(0, nbformat.v4.new_code_cell(FIRST_CELL))
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    where = {"metadata": {"path": str(file.resolve().parent)}}
    wrong = ""
    try:
        with TemporaryDirectory() as private:
            client = NotebookClient(book, timeout=None, startup_timeout=SLOW, kernel_name="python3", resources=where)
            manager = client.create_kernel_manager()
            if os.name == "posix":  # sockets in a folder that only this user may enter, instead of ports
                manager.transport, manager.ip = "ipc", f"{private}/socket"
            client.execute()
    except CellExecutionError as error:
        wrong = f"{error.ename}: {' '.join(str(error.evalue).split())[:300]}"
    except RuntimeError as error:  # it has died, or did not start
        wrong = f"the notebook's process has ended ({error})"
    done = [cell for cell in book.cells if cell.cell_type == "code" and cell.get("execution_count")]
    del book.cells[0]
    try:
        nbformat.write(book, out)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error}") from error
    if wrong:
        raise Fault(f"cell {len(done) - 1} of '{file}' failed: {wrong}; what was executed is in '{out}'")
    return out


def _today(source: str) -> str:
    from surefoot.lesson.old_names import of_today

    return of_today(source)


def _assignment(text: str) -> str:
    name, _, value = text.partition("=")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise UserError(f"'{text}' is not NAME=VALUE with a number or a quoted string") from error
    if not name.isidentifier():
        raise UserError(f"'{text}' is not NAME=VALUE with a number or a quoted string")
    return f"{name} = {value}"


def _read(file: Path) -> Any:
    nbformat: Any = import_module("nbformat")
    try:
        return nbformat.read(file, as_version=4)
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise UserError(f"'{file}' cannot be read as a notebook: {error}") from error
