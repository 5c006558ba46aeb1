"""Training: loop, objectives, runtimes, metrics. Knows no model, attack, defense or Ray."""
