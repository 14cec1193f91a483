"""A run as data: recipe, task, training loop, stages and the run's folder."""
