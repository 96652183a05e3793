#!/usr/bin/env bash
# mujoco 4.0.0: an enum of its own no longer equals NumPy's integer of the same value when it stands on the left, though
# it does on the right: `mjJNT_HINGE == np.int32(3)` is False, `np.int32(3) == mjJNT_HINGE` True. `x in (a, b)` asks the
# former, so gymnasium-robotics 1.4.2, which requires only mujoco>=2.2.0, fails in making FetchReach-v4 with an
# AssertionError (set_joint_qpos: `joint_type in (mjJNT_HINGE, mjJNT_SLIDE)`). With mujoco 3.4.0 both are True and it works.
#
# Seen with Python 3.11, numpy 2.4.6, gymnasium 1.4.0 on Linux:
#   mujoco 4.0.0: False True AssertionError
#   mujoco 3.4.0: True True made
#
# Exits 0 where this is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -q numpy==2.4.6 gymnasium==1.4.0 gymnasium-robotics==1.4.2 mujoco==4.0.0 2>&1 | grep -i error || true
cat > "$folder/look.py" <<'PYTHON'
import gymnasium
import gymnasium_robotics
import mujoco
import numpy as np

hinge = mujoco.mjtJoint.mjJNT_HINGE
gymnasium.register_envs(gymnasium_robotics)
try:
    gymnasium.make("FetchReach-v4")
    made = "made"
except AssertionError:
    made = "AssertionError"
print(f"mujoco {mujoco.__version__}: {hinge == np.int32(3)} {np.int32(3) == hinge} {made}")
PYTHON
new=$("$python" "$folder/look.py" 2>/dev/null | tail -1)
"$python" -m pip install -q mujoco==3.4.0 2>&1 | grep -i error || true
old=$("$python" "$folder/look.py" 2>/dev/null | tail -1)
printf '%s\n%s\n' "$new" "$old"
[ "$new" = "mujoco 4.0.0: False True AssertionError" ] && [ "$old" = "mujoco 3.4.0: True True made" ]
