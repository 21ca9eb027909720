"""Migration runs against an oracle that knows nothing of the operator: databases, files and faults drawn from a seed.

`case(seed)` is the same case for ever. Hypothesis is left out on purpose: one of its examples can't be named by an
integer, a soak over days is resumed by the seeds that were played, and a case of seconds with processes that are killed
shrinks to nothing useful. `python -m integration.differential SEED...` plays single seeds and prints what they are.
"""
