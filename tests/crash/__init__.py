"""Thousands of kills: see `campaign.py`."""
