#!/usr/bin/env bash
# Minari 0.5.4 saves picture observations as JPEG unless it is told otherwise, so a dataset does not hold what was seen.
# Seen: of one episode of 5 steps of 64x64x3 noise, what load_dataset gives differs by up to 245 of 255; with
# jpeg_encoding=False it is equal. Nothing is said when the dataset is made or read.
set -eu
cd "$(mktemp -d)"
python3 -m venv venv
venv/bin/pip install -q "minari[hdf5]==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "pillow==12.3.0"
MINARI_DATASETS_PATH="$PWD/datasets" venv/bin/python - <<'PYTHON'
import warnings

import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
seen = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(6)]
for name, how in (("as-it-comes", {}), ("told", {"jpeg_encoding": False})):
    buffer = EpisodeBuffer(None, 0, None, seen, [0] * 5, [0.0] * 5, [False] * 4 + [True], [False] * 5)
    minari.create_dataset_from_buffers(
        f"pictures/{name}-v0",
        [buffer],
        observation_space=spaces.Box(0, 255, (64, 64, 3), np.uint8),
        action_space=spaces.Discrete(2),
        **how,
    )
    (episode,) = minari.load_dataset(f"pictures/{name}-v0").iterate_episodes()
    worst = int(np.abs(episode.observations.astype(int) - np.stack(seen)).max())
    print(f"minari {minari.__version__}, {name}: what is read differs by up to {worst}")
    assert (worst > 50) == (name == "as-it-comes")
PYTHON
