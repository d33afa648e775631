"""Config files for tests."""
