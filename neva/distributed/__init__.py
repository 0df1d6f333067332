"""Processes: how they are launched, meet, form groups, shard a model, and end together when one fails."""
