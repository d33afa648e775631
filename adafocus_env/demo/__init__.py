"""The benchmark tasks and the renderer of their videos."""
