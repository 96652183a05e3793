#!/usr/bin/env bash
# tyro 1.0.17 with CascadeSubcommandArgs lets the options of a default subcommand be given without naming it, but not the
# negative form of a flag, which it lists in --help beside the positive one.
# Seen: --network.units 2 and --network.running choose network:mlp implicitly; --network.no-running is an unrecognized
# option, and is taken after network:mlp.
set -eu
cd "$(mktemp -d)"
python3 -m venv venv
venv/bin/pip install -q "tyro==1.0.17"
venv/bin/python - <<'PYTHON'
import contextlib
import dataclasses
import io

import tyro


@dataclasses.dataclass(frozen=True)
class MLP:
    running: bool = True
    units: int = 64


@dataclasses.dataclass(frozen=True)
class CNN:
    filters: int = 16


@dataclasses.dataclass(frozen=True)
class Config:
    network: MLP | CNN = MLP()


def taken(*args: str) -> bool:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            tyro.cli(Config, args=args, config=(tyro.conf.CascadeSubcommandArgs,))
        except SystemExit as end:
            return not end.code
    return True


seen = {
    " ".join(args): taken(*args)
    for args in (
        ("--network.units", "2"),
        ("--network.running",),
        ("--network.no-running",),
        ("network:mlp", "--network.no-running"),
    )
}
print(f"tyro {tyro.__version__}: {seen}")
assert list(seen.values()) == [True, True, False, True]
PYTHON
