"""Each of the chart's alerts fires and resolves, as Prometheus' own test of rules sees it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import packages
from integration.alert_cases import CASES, Case
from medianest_operator.api.conditions import REASONS, Severity

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts/medianest-operator/files/rules.yaml"
BAD_FOR = 60
"""Minutes; as long again is good."""


def rules() -> dict[str, dict[str, Any]]:
    """The chart's alerts by their names, without the prefix of all."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"].removeprefix("MediaNest"): rule for rule in group["rules"]}


def findings() -> list[Case]:
    """Each kind of finding that is more than a hint."""
    kinds = [reason for reason, facts in REASONS.items() if facts.finding and facts.severity is not Severity.GOOD]
    labels = {"namespace": "media", "name": "db", "object": "db-0"}
    series = 'medianest_finding{{namespace="media", name="db", reason="{}", object="db-0", level="warning"}}'
    return [Case(str(reason), {series.format(reason): ("1", "_")}, labels=labels) for reason in kinds]


@pytest.fixture(scope="module")
def promtool() -> Path:
    return packages.unpacked("prometheus") / "usr/bin/promtool"


def test_there_is_a_case_for_every_alert() -> None:
    assert sorted(case.alert for case in [*CASES, *findings()]) == sorted(rules())
    assert len(rules()) >= 30


def test_every_alert_says_what_is_wrong_and_where_to_read_on() -> None:
    for name, rule in rules().items():
        assert set(rule["annotations"]) == {"summary", "runbook_url"}, name
        page = rule["annotations"]["runbook_url"].removeprefix("RUNBOOKS/")
        assert (ROOT / "docs/runbooks" / page).exists(), name
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_each_alert_fires_and_resolves(promtool: Path, tmp_path: Path) -> None:
    known = rules()
    tests = [_test(case, known[case.alert]) for case in [*CASES, *findings()]]
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _test(case: Case, rule: dict[str, Any]) -> dict[str, Any]:
    series = {name: _values(bad, BAD_FOR) + " " + _values(good, BAD_FOR) for name, (bad, good) in case.bad.items()}
    series |= {name: _values(value, 2 * BAD_FOR) for name, value in case.also.items()}

    def filled(text: str) -> str:
        return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: case.labels[found[1]], text)

    alert = {
        "exp_labels": case.labels | rule["labels"],
        "exp_annotations": {name: filled(text) for name, text in rule["annotations"].items()},
    }
    # The last minutes of each time: then it has lasted long enough, and the rates know no other.
    return {
        "name": case.alert,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": f"{BAD_FOR - 1}m", "alertname": rule["alert"], "exp_alerts": [alert]},
            {"eval_time": f"{2 * BAD_FOR - 1}m", "alertname": rule["alert"], "exp_alerts": []},
        ],
    }


def _values(value: str, minutes: int) -> str:
    """In promtool's notation: a value that stays, `_` for none, or a counter that grows by so much a minute."""
    if value.startswith("+"):
        return f"0{value}x{minutes - 1}"
    return f"_x{minutes}" if value == "_" else f"{value}x{minutes - 1}"
