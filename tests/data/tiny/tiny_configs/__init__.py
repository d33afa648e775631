"""Config files of the tests."""
