"""From a trained model and a file of prompts to a file of answers."""
