"""From clips to features of the frozen networks: computed live, or from a bank in memory or on disk."""
