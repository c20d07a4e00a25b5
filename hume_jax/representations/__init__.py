"""Where phi1 and phi2 come from."""
