"""The compiled loops: layouts, descriptors, addresses, the one gather and the one scatter, projections, batches."""
