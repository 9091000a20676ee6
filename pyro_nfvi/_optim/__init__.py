"""Parts of every training loop, which know tensors and optimisers only."""
