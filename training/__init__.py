"""Training and evaluation: clean scenes, simulated low light, the loop of the paper, and what a checkpoint is worth."""
