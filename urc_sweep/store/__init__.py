"""Commits are the truth, artifacts their bytes, tables a projection. Knows neither training nor scheduling."""
