"""Memory devices: cards, their noise model, and target noise profiles."""
