"""Features that the frozen networks compute from clips. Features are computed live, or stored in a bank in memory or on disk."""
