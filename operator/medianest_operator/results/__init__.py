"""The documents that Jobs write and the controller reads: one model for each kind of Job."""
