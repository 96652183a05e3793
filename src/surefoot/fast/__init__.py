"""The same computations, faster: each file has a plain twin, and the trainer works without this folder."""
