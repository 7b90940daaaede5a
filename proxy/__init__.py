"""The gRPC proxy: many clients, few upstream streams."""
