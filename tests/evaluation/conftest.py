"""What the tests of kits share."""

import pytest

from neva.distributed import groups
from tests.conftest import random_image
from tests.convert.llava import llava_nemo


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A `.nemo` of random weights and two pictures."""
    folder = tmp_path_factory.mktemp("evaluate")
    for number in range(2):
        random_image(40, 30, seed=number).save(folder / f"{number}.png")
    groups.init_process_group(rank=0, world_size=1)  # left when the session ends
    groups.init_model_parallel(groups.ParallelSizes(), seed=1234)
    llava_nemo(folder)
    return folder
