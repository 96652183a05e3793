#!/usr/bin/env bash
# ray 2.60.0: `RunConfig(verbose=0)` of Ray Tune, "0 = silent" in its docstring, prints a table with the experiment's search
# algorithm, scheduler and number of trials, and where its results are, to standard output. With RAY_AIR_NEW_OUTPUT=0, the
# older output, it prints a line for each trial that ends without having reported anything.
#
# Seen with Python 3.11 on Linux. Exits 0 where this is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -q "ray[tune]==2.60.0" 2>&1 | grep -i error || true
cat > "$folder/look.py" <<'PYTHON'
import logging
import sys

import ray
from ray import tune

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
run = tune.RunConfig("quiet", sys.argv[1], verbose=0)
tune.Tuner(lambda config: None, tune_config=tune.TuneConfig(num_samples=1), run_config=run).fit()
PYTHON
new=$("$python" "$folder/look.py" "$folder/new" 2>/dev/null)
old=$(RAY_AIR_NEW_OUTPUT=0 "$python" "$folder/look.py" "$folder/old" 2>/dev/null)
printf '%s\n\n%s\n' "$new" "$old"
[[ "$new" == *"Configuration for experiment"* ]] && [[ "$old" == *"completed. Last result:"* ]]
