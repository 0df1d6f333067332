"""The kit's exact match, of one prediction."""


def exact_match_hf_evaluate(predictions, references, ignore_case, ignore_punctuation):
    return {"exact_match": float(predictions[0].lower() == references[0].lower())}
