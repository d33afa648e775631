"""Tests that try to break the whole: damaged videos, killed processes, failing disks and long runs."""
