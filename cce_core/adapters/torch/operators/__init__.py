"""The operators `torch.ops.cce.*`: how they run in the core's loops, on a GPU and anywhere else, and their gradients."""
