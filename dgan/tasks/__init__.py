"""Tasks: what a batch means to the players."""
