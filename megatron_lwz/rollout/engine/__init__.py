"""The embedded engine: an HTTP server with vLLM's routes around continuous batching on the policy's own model."""
