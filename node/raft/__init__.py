"""The raft process: consensus, write-ahead log, snapshots and peers."""
