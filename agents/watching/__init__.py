"""Episodes of a policy as moving pictures: what is played, how it is drawn, and where it is shown."""
