"""From conversations and image files to padded micro batches."""
