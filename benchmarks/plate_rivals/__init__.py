"""Models with latents in plates, their truths, and the processes that fit them."""
