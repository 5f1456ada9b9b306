"""What surrounds a run: records of the pipeline, plots, reports."""
