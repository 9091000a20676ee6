"""Files that appear whole or not at all, and archives read within bounds."""
