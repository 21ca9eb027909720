"""`spec.notifications`: where Warnings go besides the Events."""

from typing import Annotated

from pydantic import Field

from medianest_operator.api.conditions import Reason
from medianest_operator.api.model import ApiModel, DnsLabel, ObjectName


class UrlSecret(ApiModel):
    """A Secret in the object's namespace that holds a URL."""

    name: ObjectName
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "url"


class Notification(ApiModel):
    """A webhook. It gets each Warning as a JSON object whose `text` says all, as Slack and Mattermost take it; beside
    it stand `namespace`, `name`, `kind`, `reason`, `message` and `time`. What comes within five seconds for the same
    URL, from however many databases, is one request: its `text` sums up, and `messages` has each."""

    name: Annotated[DnsLabel, Field(max_length=40)]
    """Its name in Events and logs."""
    url_secret: UrlSecret
    """Where to: an http or https URL. It may hold a token, so it is kept in a Secret."""
    reasons: Annotated[list[Reason], Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})] = []
    """The reasons to tell of, for instance VerificationFailed; every Warning where empty."""
