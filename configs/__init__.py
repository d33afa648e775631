"""YAML files with values of settings. The commands of `agents` compose these files into the config of a run."""
