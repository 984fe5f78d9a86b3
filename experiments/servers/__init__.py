"""Running servers: their answers, the speed of other draft lengths there, and the proof."""
