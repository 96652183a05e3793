"""surefoot: policy gradients that climb without falling off the cliff."""
