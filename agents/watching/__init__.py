"""Episodes of a policy as moving pictures: playing, drawing and output."""
