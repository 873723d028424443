"""The embedded engine: an HTTP server with vLLM's routes and continuous batching on the policy's own model."""
