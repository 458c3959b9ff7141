"""Homomorphic encryption of words, additive and exact: parameters, limbs, guard for peer bytes, BFV, worker.

`secagg.he.bfv` is the only module that loads native code (the extra `he`); all others work without it.
"""
