"""The laboratory: toys on which one sees what an objective or a penalty does."""
