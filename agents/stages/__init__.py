"""The four stages of the paper: what each one trains, and on what."""
