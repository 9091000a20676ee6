"""Steps captured as graphs and run as compiled code."""
