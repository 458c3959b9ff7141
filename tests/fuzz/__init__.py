"""Structure-aware fuzzing: `python -m tests.fuzz N --seed S --processes P`. No harness knows a single message type.

What there is to mutate is read from the protobuf descriptors and from the fields of the message dataclasses, so a new
message or field is fuzzed as soon as it exists. Every execution is a function of (seed, harness, number).
"""
