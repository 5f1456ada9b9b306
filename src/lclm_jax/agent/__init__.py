"""Skim and expand: traces to train on, and the agent's loop on the JAX generator (extra ``[store]``: lclm-serving)."""
