"""§2: images, from wherever they lie to batches on the host."""
