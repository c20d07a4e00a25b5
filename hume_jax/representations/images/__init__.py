"""Images: where they come from, decoding, preprocessing, batches."""
