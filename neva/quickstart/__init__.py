"""The main job on real data, small enough for a laptop: easy-VQA from the installed package, from nothing to answers."""
