"""The modules: embeddings and bags, their weight, state and forward pass, whole models, and when to cluster."""
