"""Generate pages of the site: environments, settings, API, and files from outside docs/."""
