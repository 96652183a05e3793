"""Environments: the interface, Atari and Gymnasium, spaces as rows of numbers, and the vector of one rank."""
