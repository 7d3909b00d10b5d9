import json
import os

import pytest
from PIL import Image

from llava.inference.embedded import SOURCE_ROOT
from playground.signs.make_instructions import make_records
from playground.signs.scenes import make_scene

SIGNS = SOURCE_ROOT / "playground" / "checkpoints" / "llava-signs"


@pytest.fixture(scope="session")
def signs_data(tmp_path_factory):
    """A folder with 24 pictures of signs and `data.json`, some records of which have no picture."""
    folder, records = tmp_path_factory.mktemp("signs"), []
    for seed in range(600_000_000, 600_000_024):
        scene = make_scene(seed)
        Image.fromarray(scene.image).save(folder / f"sign{seed}.png")
        records += make_records(scene, seed)
    (folder / "data.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def flags(signs_data, tmp_path):
    """Makes the command line of a short run on the embedded model: `flags(max_steps=6)`; None leaves an option out."""

    def make(**changes) -> list[str]:
        options = {
            "model_name_or_path": SIGNS,
            "data_path": signs_data / "data.json",
            "image_folder": signs_data,
            "output_dir": tmp_path / "out",
            "tune_mm_mlp_adapter": True,
            "dominant": 3,
            "contextual": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "max_steps": 4,
            "logging_steps": 1,
            "save_steps": 2,
            "report_to": "none",
            "disable_tqdm": True,
            **changes,
        }
        return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]

    return make


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps the state of a run for the whole process, and transformers leaves its settings in variables."""
    before = dict(os.environ)
    yield
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ.clear()
    os.environ.update(before)
