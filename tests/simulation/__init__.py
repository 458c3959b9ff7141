"""A whole federation in memory, over several rounds and attempts, under every fault that a schedule asks for.

The sessions are the real ones; the shells around them (journals, network, restarts) are simulated, so that a crash may
fall between any two effects. A schedule is a list of integers: the same list gives the same run, and a failing list is
shrunk to a short one. `python -m tests.simulation 20000 --processes 2` runs a campaign.
"""
