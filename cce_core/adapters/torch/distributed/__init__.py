"""Several processes: clustering by all of them together, pointers shared out among them, DistributedDataParallel."""
