"""nvidia-smi in a stand-in: a script that prints what a machine with cards would, or does not answer."""

import os
import subprocess

import pytest

from scope_cli.machine import nvidia

MIB = 2**20


@pytest.fixture
def says(monkeypatch):
    """`says({query: text})`; any other query fails, as with an old driver."""

    def says(answers):
        def run(command, *, timeout, **_):
            assert command[0] == "nvidia-smi" and timeout > 0
            for query, text in answers.items():
                if command[1].startswith(query):
                    return subprocess.CompletedProcess(command, 0, stdout=text)
            raise subprocess.CalledProcessError(1, command)

        monkeypatch.setattr(subprocess, "run", run)

    return says


@pytest.mark.parametrize(
    ("said", "expected"), [("81559\n", [81559 * MIB]), ("10\n20\n", [10 * MIB, 20 * MIB]), ("N/A\n", [])]
)
def test_free_memory_is_that_of_every_card(says, said, expected):
    says({"--query-gpu=memory.free": said})
    assert nvidia.free_bytes() == expected


def test_names_come_with_the_driver(says):
    says({"--query-gpu=name": "NVIDIA H100 80GB HBM3, 580.95\nNVIDIA L4, 580.95\n"})
    assert nvidia.names_and_drivers() == [("NVIDIA H100 80GB HBM3", "580.95"), ("NVIDIA L4", "580.95")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("{me}, 700\n99, 5000\n{me}, 30\n", 730 * MIB),  # on two cards, beside somebody else's
        ("99, 5000\n", None),
        ("{me}, [N/A]\n", None),
        ("", None),
    ],
)
def test_the_processs_share_is_what_is_listed_under_its_number(says, rows, expected):
    says({"--query-compute-apps": rows.format(me=os.getpid())})
    assert nvidia.process_bytes() == expected


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 1)])
def test_a_machine_without_it_has_no_cards(monkeypatch, error):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert (nvidia.free_bytes(), nvidia.names_and_drivers(), nvidia.process_bytes()) == ([], [], None)
