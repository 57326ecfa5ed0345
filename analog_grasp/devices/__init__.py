"""Memory devices: cards, the noise model of a card, and target noise profiles."""
