"""From a chosen kernel to text to binary to launch: families, templates, targets."""
