"""Rounds whose draft is a tree: drafted level by level, judged in one forward."""
