"""What a run leaves for its reader: results, labels, a table, plots."""
