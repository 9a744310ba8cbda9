"""Recovery of a damaged journal file: find the damage, copy the readable rows, swap the files."""
