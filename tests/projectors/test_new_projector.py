"""`svp new-projector` writes a short file that is a projector at once."""

import pytest
import torch

from harness.discovery import get_projector, load_projector
from harness.new_projector import write_projector
from harness.projector import ImageFeatures, Interface


def test_the_written_file_is_found_built_and_run(tmp_path):
    path = write_projector("my_idea", tmp_path)
    assert len(path.read_text().splitlines()) <= 40
    assert get_projector(str(path)).name == "my_idea"
    projector = load_projector(str(path))(Interface(8, 12, (4, 4), budget=5))
    image = ImageFeatures(torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)), (4, 4))
    tokens = projector(image)
    assert tokens.embeddings.shape == (10, 12) and tokens.lengths.tolist() == [5, 5]


@pytest.mark.parametrize(("name", "why"), [("My-Idea", "lower-case"), ("avg_pool", "exists")])
def test_bad_names_are_refused(tmp_path, name, why):
    with pytest.raises(ValueError, match=why):
        write_projector(name, tmp_path)


def test_nothing_is_overwritten(tmp_path):
    write_projector("my_idea", tmp_path)
    with pytest.raises(ValueError, match="exists"):
        write_projector("my_idea", tmp_path)
