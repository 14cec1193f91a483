"""Other ways to choose bits, behind the same count of trials."""
