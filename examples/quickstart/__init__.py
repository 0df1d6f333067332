"""The main job on real data, small enough for a laptop: easy-VQA, from nothing to scored answers."""
