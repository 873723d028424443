"""Rollouts: the engines' client and pool, the durable journal, and the controller that connects them to the rewards."""
