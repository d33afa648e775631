"""The page about finished runs: one HTML file that opens offline."""
