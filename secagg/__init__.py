"""Pairwise-masking secure aggregation: the pure core. No I/O, no clock, no ambient randomness. See SPEC.md."""

__version__ = "0.1.0"
