"""Found classes named, merged and split by hand: classes.yaml of a run, and what follows."""
