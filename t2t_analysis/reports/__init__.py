"""Runs notebooks and writes what people read: one HTML file per run and an index, all of it offline."""
