"""CPU families: C with vector extensions."""
