"""What every server and client of ours shares: app factory, token, limits, retries, event streams, process launcher."""
