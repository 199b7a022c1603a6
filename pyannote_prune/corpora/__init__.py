"""Many recordings: which ones, and where the results of each go."""
