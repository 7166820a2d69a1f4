"""Answers of a given form: from a schema, expression, list or grammar to the tokens that may come next.

The grammars themselves are llguidance's. Here is what surrounds it: bounds before anything is compiled, a trial in a
process that can be killed, a bounded cache, masks computed beside the engine. It knows nothing of HTTP.
"""
