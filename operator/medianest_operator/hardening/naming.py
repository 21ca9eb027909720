"""How the operator's own objects inside the database are told from the application's."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "hardening_"
"""Begins the name of every index, constraint, column, trigger, policy and function of ours but one."""

CURRENT_USER_ID: Final = "current_user_id"
"""The one without the prefix: the application's readiness report names it, and people's own SQL may call it."""

USER_SETTING: Final = "app.current_user_id"
"""The setting in which a session says for which user it works (the application's security guide has this name)."""

CANDIDATE: Final = "_new"
"""Ends the name of a constraint that isn't verified yet."""

MARK: Final = "medianest-operator, spec.hardening."
"""Begins the comment on every object of ours."""


def is_own(name: str) -> bool:
    """Whether an index, constraint, column, trigger or policy is ours by its name."""
    return name.startswith(PREFIX)
