"""Examinations of a finished fit that its own draws cannot make."""
