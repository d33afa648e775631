"""Settings of the commands: YAML files and `key=value` arguments become typed objects."""
