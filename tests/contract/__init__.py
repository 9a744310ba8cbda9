"""What replication relies on, asked of all that stands for Dakera, and of Dakera itself."""
