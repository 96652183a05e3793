"""Several processes as one run: what they exchange, how they are launched and watched."""
