"""The reference in README.md is complete and says the defaults that are really used."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from penstock_proxy import errors, metrics
from penstock_supervisor.config.loader import Config, Service
from penstock_supervisor.observability import prometheus

README = (Path(__file__).parents[1] / "README.md").read_text()
REFERENCE = README.partition("## Configuration")[2].partition("\n## ")[0]
DOCUMENTED = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| .+ \|$", REFERENCE, re.MULTILINE))
METRICS = dict(re.findall(r"^\| `(penstock_\w+)` \| ([\w, ]*?) ?\| .+ \|$", README, re.MULTILINE))

BOUNDS = README.partition("## Bounds")[2].partition("\n## ")[0]


def keys(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted names; a table in a table is its keys."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


OF_RUN = keys(Config)
del OF_RUN["services"]
KEYS = {**OF_RUN, **keys(Service)}
del KEYS["name"]  # a table's own key


def test_every_key_is_documented_and_no_other() -> None:
    assert DOCUMENTED.keys() == KEYS.keys()


@pytest.mark.parametrize("key", KEYS)
def test_the_documented_default_is_the_default(key: str) -> None:
    text = DOCUMENTED[key]
    if text == "required":
        assert KEYS[key].is_required()
        return
    if text == "none":
        assert KEYS[key].default is None
        return
    value: Any = tomllib.loads(f"x = {text.strip('`')}")["x"]
    for name in reversed(key.split(".")):
        value = {name: value}
    if key in OF_RUN:
        assert Config.model_validate({**value, "services": ()}) == Config(services=())
        return
    required = {"name": "web", "listen": "127.0.0.1:1"}
    assert Service.model_validate({**required, **value}) == Service.model_validate(required)


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("limits.")])
def test_every_limit_is_in_the_table_of_bounds_with_its_default(key: str) -> None:
    rows = re.findall(rf"^\|[^|]+\| `{key}` = (`[^`]+`)[^|]*\|(.+)\|$", BOUNDS, re.MULTILINE)
    assert rows, f"no row for {key}"
    assert {default for default, _ in rows} == {DOCUMENTED[key]}
    assert all(len(rest.split("|")) == 3 for _, rest in rows)


def test_every_metric_in_the_table_of_bounds_exists() -> None:
    named = set(re.findall(r"penstock_\w+", BOUNDS))
    assert named <= {metric.name for metric in (*prometheus.TABLE, *metrics.TABLE)}
    kinds = set(re.findall(r'kind="(\w+)"', BOUNDS))
    assert kinds <= {fault.kind for fault in errors.FAULTS}
    assert set(re.findall(r'rejected_total\{reason="(\w+)"', BOUNDS)) <= set(metrics.REJECTIONS)


@pytest.mark.parametrize("metric", [*prometheus.TABLE, *metrics.TABLE], ids=lambda m: m.name)
def test_every_metric_is_documented_with_its_labels(metric: metrics.Metric) -> None:
    assert METRICS[metric.name] == ", ".join(metric.labels)


def test_no_other_metric_is_documented() -> None:
    assert METRICS.keys() == {metric.name for metric in (*prometheus.TABLE, *metrics.TABLE)}
