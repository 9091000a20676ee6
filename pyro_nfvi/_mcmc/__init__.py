"""Markov chains side by side: Hamiltonian transitions of a scored density, and their adaptation."""
