"""Ready-made tasks, one module each; `octavo.task.load_task` finds them by their short names."""
