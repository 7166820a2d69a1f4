"""The CPU's inner loops, compiled by Numba when they are first used: no compiler has to be installed.

They fuse what torch would do in many passes over memory: norms, activation functions, quantisation, rotary positions,
attention of one token over paged keys. Matrix products stay torch's. `team` runs them on torch's own threads.
"""
