"""What a rule has to pass before it is used: its law evaluated in random situations, its numeric class, its evidence."""
