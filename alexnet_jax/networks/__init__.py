"""Trained networks: loading, saving, asking, averaging, beginning with one."""
