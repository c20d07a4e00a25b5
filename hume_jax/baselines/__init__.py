"""Other methods on the same representations: without labels, and with them as a ceiling."""
