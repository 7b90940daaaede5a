"""How members speak with each other: raft's messages over gRPC, on the peer URLs."""
