"""The folder of a run: whose it is, its checkpoints, its log, its report."""
