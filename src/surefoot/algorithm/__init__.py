"""What PPO is: collect, advantages, update, repeat."""
