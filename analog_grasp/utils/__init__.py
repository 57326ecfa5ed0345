"""Seeds, times, files, errors and types shared by all packages."""
