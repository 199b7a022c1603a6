"""Lists of recordings, and the files with their results."""
