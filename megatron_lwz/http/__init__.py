"""Shared parts of HTTP servers and clients: app factory, token, limits, retries, event streams, process launcher."""
