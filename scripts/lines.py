"""Lines per file of src/surefoot against their budgets (docs/design.md, section 1); exits 1 where one is exceeded.

A budget may be raised in the same change that says why.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "surefoot"
CORE, ALL = 7205, 7750  # what trains; with what stands around it
CORE_BUDGETS = {
    "__init__.py": 155, "__main__.py": 10, "errors.py": 30, "cli.py": 330, "config.py": 270, "presets.py": 250,
    "credit.py": 260, "objectives.py": 200, "networks.py": 225, "policy.py": 560, "players.py": 70, "windows.py": 150,
    "actions.py": 315, "arrays.py": 20, "envs/__init__.py": 290, "envs/atari.py": 250, "envs/console.py": 160,
    "envs/gym.py": 345, "envs/spaces.py": 180, "envs/vector.py": 110, "noise.py": 70, "rollout.py": 205,
    "optimizers.py": 65, "steps.py": 140, "running.py": 90, "learn.py": 190, "loop.py": 125, "state.py": 300,
    "ranks.py": 220, "launch.py": 255, "metrics.py": 120, "evaluation.py": 365, "shares.py": 100, "report.py": 330,
    "runs.py": 240, "runner.py": 280, "files.py": 140, "pulse.py": 140,
}  # fmt: skip
AROUND_BUDGETS = {"layers.py": 80, "videos.py": 160, "pictures.py": 200, "benching.py": 200}
KINDS = {".py", ".html", ".js", ".css"}


def main() -> int:
    """Print the table; returns the exit code."""
    budgets = CORE_BUDGETS | AROUND_BUDGETS
    files = {p.relative_to(ROOT).as_posix(): p for p in sorted(ROOT.rglob("*")) if p.suffix in KINDS}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    wrong = []
    for name, count in lines.items():
        print(f"{name:<18}{count:>6} of {budgets.get(name, '?'):>4}")
        if name not in budgets:
            wrong.append(f"{name} has no budget: give it one in scripts/lines.py")
        elif count > budgets[name]:
            wrong.append(f"{name} has {count} lines, {count - budgets[name]} over its budget of {budgets[name]}")
    core = sum(count for name, count in lines.items() if name in CORE_BUDGETS)
    for what, count, limit in (("the core", core, CORE), ("everything", sum(lines.values()), ALL)):
        print(f"{what:<18}{count:>6,} of {limit:,}")
        if count > limit:
            wrong.append(f"{what} has {count:,} lines, {count - limit:,} over its limit of {limit:,}")
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
