"""What several rooms share: result files, statistics, tables, plots, cost sources."""
