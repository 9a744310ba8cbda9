"""Kills by the thousand; see `campaign.py`."""
