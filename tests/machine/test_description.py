"""What numbers were measured on."""

from pathlib import Path

import pytest

from scope_cli.machine.description import processor

CLOUD = "processor : 0\ncpu family : 25\nmodel : {model}\nmodel name : AMD EPYC\n\n"


def test_two_cpus_of_one_name_are_told_apart(tmp_path: Path):
    """A cloud calls both Zen 3 and Zen 4 "AMD EPYC"; only one of them has AVX-512."""
    (tmp_path / "zen3").write_text(2 * CLOUD.format(model=1))
    (tmp_path / "zen4").write_text(2 * CLOUD.format(model=17))

    assert processor(tmp_path / "zen3") == "AMD EPYC (family 25, model 1)"
    assert processor(tmp_path / "zen4") == "AMD EPYC (family 25, model 17)"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("model : 85\ncpu family : 6\nmodel name : Intel(R) Xeon(R) 6985P\n", "Intel(R) Xeon(R) 6985P"),
        ("model name : Cortex\n", "Cortex"),
    ],
)
def test_a_name_that_says_enough_or_a_cpu_that_says_no_more(tmp_path: Path, said: str, name: str):
    (tmp_path / "cpuinfo").write_text(said)

    assert processor(tmp_path / "cpuinfo") == name


def test_there_is_a_name_everywhere(tmp_path: Path):
    assert processor() and processor(tmp_path / "missing")
