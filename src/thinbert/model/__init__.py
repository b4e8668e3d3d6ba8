"""What a model is: configuration, weights on disk, sparsity, and the reference forward pass."""
