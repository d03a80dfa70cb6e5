"""A made-up study on disk: known effects, real file formats, no model."""

import json

import pytest
from made_up_study import MADE_BY, make_study
from made_up_tables import write

from harness.reporting.context import ReportContext
from harness.reporting.tables import tables_stage


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def tables(made_up, tmp_path_factory):
    return write(made_up, tmp_path_factory.mktemp("tables"))


@pytest.fixture
def reference(made_up, tmp_path):
    """Two snapshots of the made-up study, the second relative to another projector."""
    for name, projector in (("default", "dense"), ("a_study", "coin_flip @36")):
        context = ReportContext.from_study(made_up["config"], resamples=50)
        context = context.model_copy(update={"study": name, "reference": projector})
        tables = tmp_path / name / "tables"
        tables_stage(made_up["scores"], made_up["efficiency"], made_up["prepared"], tables, context)
        (tmp_path / name / "provenance.json").write_text(json.dumps(MADE_BY))
    return tmp_path
