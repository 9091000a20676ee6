"""Scripts that write the numbers of the documentation, and the posteriors they use."""
