"""Many fits: specifications, their files, and tables of results."""
