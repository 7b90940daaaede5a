"""The front process: client sockets, gRPC services, JSON, health and metrics."""
