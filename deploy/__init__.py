"""How the parts are started: the `tephra` command, the local launcher, the demo checkpoint."""
