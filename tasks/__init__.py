"""What touches the world: one module per outside system."""
