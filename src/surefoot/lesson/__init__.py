"""What one learns with: exercises, the old lesson's modules and notebooks, the ladder from REINFORCE to PPO."""
