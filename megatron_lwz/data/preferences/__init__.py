"""Preference pairs: read in the usual formats, made without human labels, rendered and packed for a reward model."""
