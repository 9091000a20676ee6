"""C++ for captured graphs."""
