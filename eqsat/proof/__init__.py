"""Whether two programs, or the two sides of a law, are equal: proved, or tested in fields with a stated chance of error."""
