"""Features of clips from the frozen networks, computed live or stored in a bank in memory or on disk."""
