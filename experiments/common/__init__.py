"""Common parts of several rooms: result files, statistics, tables, plots, cost sources."""
