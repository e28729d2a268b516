"""Looking inside a trained generator: walks, truncation, nearest real images, projection."""
