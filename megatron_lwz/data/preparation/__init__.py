"""Requests of people out of conversation data sets: read, tagged, de-duplicated, given a range of length."""
