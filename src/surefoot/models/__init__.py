"""Policies: networks, distributions over actions, optimizers."""
