"""A schema with more objects than can be read in time is said to be one: nothing is tried without end."""

from __future__ import annotations

from integration.serving import serving

_MAKE = """
DO $$ BEGIN
  FOR i IN 1..20000 LOOP
    EXECUTE format('CREATE FUNCTION public.f%s() RETURNS int LANGUAGE sql AS ''SELECT 1''', i);
  END LOOP;
  FOR i IN 1..{tables} LOOP
    EXECUTE format('CREATE TABLE public.t%s (a int PRIMARY KEY, b int UNIQUE, c int, d int, e text)', {first} + i);
  END LOOP;
END $$
"""


async def test_twenty_thousand_functions_and_two_thousand_tables() -> None:
    async with serving() as made:
        with made.database.connect("medianest_migrator") as connection:
            connection.autocommit = True
            connection.execute(_MAKE.format(tables=100, first=0).encode())
            for first in range(100, 2000, 100):
                connection.execute(_MAKE.replace("20000", "0").format(tables=100, first=first).encode())
        made.arena.services.memory.forget(made.key)
        for _ in range(4):
            await made.arena.run(made.key)
        conditions = made.arena.conditions(made.key)
    # It was read, or a person is told that it can't be; a migration that is pending never starts otherwise.
    assert "NotObserved" not in {reason for _, reason in conditions.values()}, conditions
