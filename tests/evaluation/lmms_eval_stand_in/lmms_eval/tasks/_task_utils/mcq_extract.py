"""The kit's reading of letters, where the answer is nothing else."""


def extract_mcq_answer(response, choices=None):
    return response if response in choices else ""
