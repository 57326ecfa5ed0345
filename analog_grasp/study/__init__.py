"""Studies: grids of measurements over adapters, devices, drift times and chip instances."""
