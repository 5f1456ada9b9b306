"""Judging by a model: the published requests of AA-LCR and LongMemEval, and how its reply is read."""

from lclm_jax.suite.sample import Sample

_AA_LCR = """Assess whether the following CANDIDATE ANSWER is CORRECT or INCORRECT.
For the CANDIDATE ANSWER to be correct, it must be consistent with the OFFICIAL ANSWER.

The question, for reference only: {question}
The OFFICIAL ANSWER: {answer}
CANDIDATE ANSWER TO ASSESS: {reply}

Reply only with CORRECT or INCORRECT."""

_CORRECT = (
    "I will give you a question, a correct answer, and a response from a model. Please answer yes if the response"
    " contains the correct answer. Otherwise, answer no. "
)
_EQUIVALENT = (
    "If the response is equivalent to the correct answer or contains all the intermediate steps to get the correct"
    " answer, you should also answer yes. If the response only contains a subset of the information required by the"
    " answer, answer no. "
)
_DAYS = (
    "In addition, do not penalize off-by-one errors for the number of days. If the question asks for the number of"
    " days/weeks/months, etc., and the model makes off-by-one errors (e.g., predicting 19 days when the answer is 18),"
    " the model's response is still correct. "
)
_UPDATED = (
    "If the response contains some previous information along with an updated answer, the response should be considered"
    " as correct as long as the updated answer is the required answer."
)
_ASKED = (
    "\n\nQuestion: {question}\n\nCorrect Answer: {answer}\n\nModel Response: {reply}\n\nIs the model response correct?"
    " Answer yes or no only."
)
_PREFERENCE = (
    "I will give you a question, a rubric for desired personalized response, and a response from a model. Please answer"
    " yes if the response satisfies the desired response. Otherwise, answer no. The model does not need to reflect all"
    " the points in the rubric. The response is correct as long as it recalls and utilizes the user's personal"
    " information correctly.\n\nQuestion: {question}\n\nRubric: {answer}\n\nModel Response: {reply}\n\nIs the model"
    " response correct? Answer yes or no only."
)
_ABSTENTION = (
    "I will give you an unanswerable question, an explanation, and a response from a model. Please answer yes if the"
    " model correctly identifies the question as unanswerable. The model could say that the information is incomplete,"
    " or some other information is given but the asked information is not.\n\nQuestion: {question}\n\nExplanation:"
    " {answer}\n\nModel Response: {reply}\n\nDoes the model correctly identify the question as unanswerable? Answer yes"
    " or no only."
)
REQUESTS = {
    "aa_lcr": _AA_LCR,
    "single-session-user": _CORRECT + _EQUIVALENT + _ASKED,
    "single-session-assistant": _CORRECT + _EQUIVALENT + _ASKED,
    "multi-session": _CORRECT + _EQUIVALENT + _ASKED,
    "temporal-reasoning": _CORRECT + _EQUIVALENT + _DAYS + _ASKED,
    "knowledge-update": _CORRECT + _UPDATED + _ASKED,
    "single-session-preference": _PREFERENCE,
    "abstention": _ABSTENTION,
}
"""Texts as published, by ``extra["judge"]`` of a sample."""


def request(sample: Sample, reply: str) -> str:
    """What the judge is asked about ``reply``."""
    return REQUESTS[sample.extra["judge"]].format(question=sample.extra["asked"], answer=sample.answers[0], reply=reply)


def verdict(sample: Sample, reply: str) -> float | None:
    """1 or 0 by what the judge said; None if it said neither."""
    if sample.extra["judge"] == "aa_lcr":
        return {"CORRECT": 1.0, "INCORRECT": 0.0}.get(reply.strip())
    return float("yes" in reply.lower())
