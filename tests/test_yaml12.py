import pytest
import yaml
from dvc.utils.serialize import parse_yaml

from facevae.config.yaml12 import Yaml12Loader

CORE_SCHEMA = {  # YAML 1.2, section 10.3.2
    "0x1F": 31,
    "0xff": 255,
    "0x0": 0,
    "0o17": 15,
    "0o0": 0,
    "017": 17,
    "0644": 644,
    "0089": 89,
    "-12": -12,
    "+12": 12,
    "1e-5": 1e-5,
    "1E3": 1000.0,
    "1.5e+3": 1500.0,
    "12e3": 12000.0,
    "1.": 1.0,
    "-.5": -0.5,
    ".inf": float("inf"),
    "-.INF": float("-inf"),
    "true": True,
    "FALSE": False,
    "~": None,
    "Null": None,
    "": None,
    "no": "no",
    "on": "on",
    "1:30": "1:30",
    "0x": "0x",
    "0xG": "0xG",
    "0o8": "0o8",
    "0X1F": "0X1F",
    "0O17": "0O17",
    "0x1F.5": "0x1F.5",
    '"0x1F"': "0x1F",
}
BEYOND = ["-0x1F", "-0o17", "1_000", "0x1_F", "0b11", "2020-01-01"]  # DVC reads them as numbers or a date


def load(text: str) -> object:
    return yaml.load(f"key: {text}", Loader=Yaml12Loader)["key"]


def load_as_dvc_does(text: str) -> object:
    return parse_yaml(f"key: {text}", "params.yaml")["key"]


@pytest.mark.parametrize("text", CORE_SCHEMA)
def test_scalars_of_the_core_schema_match_dvc(text: str) -> None:
    expected = CORE_SCHEMA[text]
    for found in (load(text), load_as_dvc_does(text)):
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize("text", BEYOND)
def test_scalars_beyond_the_core_schema_stay_strings(text: str) -> None:
    assert load(text) == text
    assert not isinstance(load_as_dvc_does(text), str)


@pytest.mark.parametrize("text", ["0x" + "F" * 5000, "0o" + "7" * 6000, "9" * 5000, "!!int 0x", "!!int -0x1F"])
def test_unreadable_integers_are_errors(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="the value cannot be read as int"):
        load(text)
