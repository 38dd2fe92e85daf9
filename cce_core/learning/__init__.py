"""How a sketch is learned from trained vectors: sampling, targets, and a learner for each kind of sketch."""
