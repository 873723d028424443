"""Rollouts: engines' client and pool, the durable journal, and the controller that ties them to rewards."""
