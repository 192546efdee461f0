"""The formulas, section by section: §3 the network, §4 the augmentation, §5 the training, §6 the errors."""
