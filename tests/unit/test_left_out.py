"""What a restore left out is told from what only bears the same name."""

import pytest

from medianest_operator.backups.logical.toc import LeftOut, Name
from medianest_operator.postgres.catalog import CatalogObject


@pytest.mark.parametrize(
    ("left", "item", "covered"),
    [
        (("TABLE", "users"), ("table", "", "users"), True),
        (("TABLE", "users"), ("column", "users", "name"), True),
        (("TABLE", "users"), ("index", "users", "users_name_key"), True),
        (("TABLE", "users"), ("grants", "", "table users"), True),
        (("TABLE", "users"), ("comment", "", "policy own on public.users"), True),
        (("TABLE", "users"), ("comment", "", "table public.users"), True),
        (("TABLE", "users"), ("comment", "", "table column public.users.name"), True),
        (("TABLE", "users"), ("grants", "", "column users.name"), True),
        (("TABLE", "users"), ("schema", "", "users"), False),
        (("TABLE", "users"), ("grants", "", "schema users"), False),
        (("TABLE", "app.Users"), ("table", "", 'app."Users"'), True),
        (("TABLE", "app.users"), ("table", "", "users"), False),
        (("SERVER", "users"), ("foreign server", "", "users"), True),
        (("SERVER", "users"), ("grants", "", "foreign server users"), True),
        (("SERVER", "users"), ("table", "", "users"), False),
        (("SERVER", "users"), ("column", "users", "name"), False),
        (("SERVER", "users"), ("grants", "", "table users"), False),
        (("EVENT TRIGGER", "users"), ("comment", "", "table public.users"), False),
        (("EVENT TRIGGER", "users"), ("comment", "", "policy own on public.users"), False),
        (("PROCEDURAL LANGUAGE", "plx"), ("language", "", "plx"), True),
        (("FUNCTION", "f(integer)"), ("function", "", "f(n integer)"), True),
        (("FUNCTION", "f(integer)"), ("grants", "", "function f(integer)"), True),
        (("FUNCTION", "f(integer)"), ("function", "", "f(n bigint)"), False),
        (("FUNCTION", "f(public.flag, integer)"), ("function", "", "f(a flag, b integer)"), True),
        (("FUNCTION", "f(public.flag)"), ("grants", "", "function f(flag)"), True),
        (("PUBLICATION", "led"), ("publication", "", "led"), True),
        (("PUBLICATION", "led"), ("table", "", "led"), False),
        (("POLICY", "users own"), ("policy", "users", "own"), True),
        (("POLICY", "users own"), ("trigger", "users", "own"), False),
        (("INDEX", "app.by_name"), ("index", "app.users", "by_name"), True),
        (("INDEX", "app.by_name"), ("index", "users", "by_name"), False),
        (("OPERATOR CLASS", "ops"), ("operator class", "", "ops USING btree"), True),
        (("TYPE", "money2"), ("base type", "", "money2"), True),
    ],
)
def test_what_was_left_out(left: tuple[str, str], item: tuple[str, str, str], covered: bool) -> None:
    assert LeftOut(names={Name.of(*left)}).covers(CatalogObject(*item, {})) is covered
