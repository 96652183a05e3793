"""A run on disk: directory, checkpoints, metrics, report, evaluation, video."""
