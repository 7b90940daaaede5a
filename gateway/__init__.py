"""The TCP gateway: connections of clients to the members of a cluster, as bytes."""
