"""The ``--projector`` option of the contract tests."""


def pytest_addoption(parser):
    parser.addoption(
        "--projector",
        action="append",
        default=[],
        help="check this projector (name, module:Class or path/to/file.py) instead of all",
    )
