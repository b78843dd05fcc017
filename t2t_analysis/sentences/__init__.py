"""Results in words, one module a notebook; no number that a result does not hold.

`words` has what they share.
"""
