"""When requests come, and which ones: arrivals, request mixes, and their files."""
