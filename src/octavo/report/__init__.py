"""The tables and the progress display that people look at."""
