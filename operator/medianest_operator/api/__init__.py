"""The resource kinds as pydantic models: the one source of `crds/`."""
