"""Training, knowing no model, attack, defense or Ray: the loop, objectives, runtimes, metrics."""
