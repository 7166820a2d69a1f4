"""From files in the LLaVA conversation format to flat batches of labelled tokens."""
