"""Workers: processes that answer samples, one JSON object a line, each in an environment of its own.

``serve``, ``kvpress_worker`` and ``openai_worker`` need nothing but the standard library (and what they drive), so they
run where ``lclm_jax`` itself cannot.
"""
