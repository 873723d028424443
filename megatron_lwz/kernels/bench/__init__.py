"""Measures the log-prob op beside plain torch, bare matrix products and other libraries (`lwz bench-kernels`)."""
