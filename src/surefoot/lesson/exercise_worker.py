"""The process in which a learner's function runs: `exercises.check` starts it, and ends it when its time is over.

It reads one line of JSON, writes "ready", runs the function, and writes the verdicts as JSON. What the learner's code
prints goes nowhere.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from surefoot.lesson.exercise_judge import judge
from surefoot.lesson.exercise_laws import ANSWERS
from surefoot.lesson.exercises import Verdict, _cannot


def limit(megabytes: int, seconds: float) -> None:
    """Let this process allocate so much more than it has now (Linux), and end it some time after it should have ended.

    The second is for a process whose parent was killed, and works wherever there is `resource`: not on Windows.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        most = math.ceil(time.process_time() + seconds) + 10
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        with open("/proc/self/status") as file:
            have = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
        most = have + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def verdicts(name: str, source: str, megabytes: int) -> list[Verdict]:
    """Run the learner's code and judge its function; a sentence where it cannot be run."""
    file = f"{name}.py"
    names: dict[str, Any] = {"__name__": "exercise", "__file__": file}
    try:
        exec(compile(source, file, "exec"), names)
        if not callable(names.get(name)):
            return _cannot(f"there is no function {name}")
        return judge(ANSWERS[name], names[name])
    except NotImplementedError:
        return _cannot("it is not written yet: replace `raise NotImplementedError`")
    except MemoryError:
        return _cannot(f"it asked for more than {megabytes:,} MB of memory")
    except RecursionError:
        return _cannot("it calls itself without end")
    except SyntaxError as error:
        return _cannot(f"line {error.lineno} is not Python: {error.msg}")
    except (Exception, SystemExit) as error:
        if "allocate" in str(error) and "memory" in str(error):  # torch's RuntimeError
            return _cannot(f"it asked for more than {megabytes:,} MB of memory")
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f"line {lines[-1]}: " if lines else ""
        return _cannot(f"{where}{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def main() -> None:
    """Serve one check."""
    order = json.loads(sys.stdin.readline())
    ANSWERS[order["name"]].expect()
    answer, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    sys.path.append(os.getcwd())  # the learner's own modules
    limit(order["megabytes"], order["seconds"])
    os.write(answer, b"ready\n")
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    results = verdicts(order["name"], order["source"], order["megabytes"])
    os.write(answer, json.dumps([asdict(v) for v in results]).encode())


if __name__ == "__main__":
    main()
