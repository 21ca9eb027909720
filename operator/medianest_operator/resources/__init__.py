"""Pure builders: spec and names in, manifests out. No I/O, no clock, no randomness."""
