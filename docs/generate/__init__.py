"""Pages of the site that are generated: environments, settings, API, and files that lie outside docs/."""
