"""Raft traces: files of commands, each with the exact output that follows from the algorithm.

`format.py` has the form of the files, `quorum.py`, `confchange.py` and `interaction.py` the commands of each kind.
"""
