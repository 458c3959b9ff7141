"""Tests. A package, because an example's data package brings a top-level `tests` of its own along."""
