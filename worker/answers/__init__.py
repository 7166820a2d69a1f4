"""From the tokens that an engine draws to the text that a client reads."""
