"""The rollbacks to where a run began, and finishing a run whose process is gone."""
