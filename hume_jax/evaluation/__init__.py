"""How good a labelling is: with the true labels, and without them."""
