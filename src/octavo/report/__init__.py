"""What people look at: progress while a run lasts, tables when it is over."""
