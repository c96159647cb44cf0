"""Triton's own client, unmodified, against the server: it runs once in a process and an environment of its own."""

import asyncio
import json
from pathlib import Path

import pytest
import tiny_bundle
from inference_door import serving

from protos import open_inference_pb2 as pb

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"
SCENES = Path(__file__).with_name("tritonclient_scenes.py")
RED, BLUE = tiny_bundle.LABELS.index("red"), tiny_bundle.LABELS.index("blue")

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no environment with tritonclient; make it with `make .venv-tritonclient/.ready`"
)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the client heard, scene by scene."""
    folder = tmp_path_factory.mktemp("tritonclient")
    tiny_bundle.write(folder / "models")
    for label in ("red", "blue"):
        (folder / f"{label}.png").write_bytes(tiny_bundle.picture(label))
    (folder / "foreign.png").write_bytes(tiny_bundle.foreign())
    pictures = [folder / f"{name}.png" for name in ("red", "blue", "foreign")]

    async def play():
        async with serving(folder / "models") as (_, port):
            program = await asyncio.create_subprocess_exec(
                *(PYTHON, SCENES, str(port), *pictures, str(tiny_bundle.CROP_PX)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
            )
            out, err = await asyncio.wait_for(program.communicate(), timeout=120)
        assert program.returncode == 0, err.decode()
        return json.loads(out)

    return asyncio.run(play())


def best(rows):
    for row in rows:
        assert sum(row) == pytest.approx(1, abs=1e-6)
    return [max(range(len(row)), key=row.__getitem__) for row in rows]


def test_it_finds_the_server_live_and_ready(told):
    """And an unknown model not ready, without an error."""
    assert told["states"] == {
        "live": True,
        "ready": True,
        "model ready": True,
        "version ready": True,
        "unknown ready": False,
    }


def test_it_reads_metadata_and_config(told):
    """Names, datatypes, shapes and limits, in the client's own terms."""
    found = told["descriptions"]
    assert found["server"]["name"] == "calotype"
    assert {"classification", "statistics", "model_configuration"} <= set(found["server"]["extensions"])
    assert found["metadata"]["versions"] == ["1"]
    assert found["metadata"]["inputs"] == [{"name": "images", "datatype": "BYTES", "shape": ["-1", "1"]}]
    assert found["metadata"]["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "3"]},
        {"name": "unknown", "datatype": "BOOL", "shape": ["-1", "1"]},
    ]
    assert (found["config"]["name"], found["config"]["max_batch_size"]) == ("colours", 8)
    assert found["config"]["input"] == [{"name": "images", "data_type": "TYPE_STRING", "dims": ["1"]}]
    assert found["config"]["output"] == [
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": ["3"]},
        {"name": "unknown", "data_type": "TYPE_BOOL", "dims": ["1"]},
    ]
    assert found["config"]["parameters"]["crop_px"]["string_value"] == str(tiny_bundle.CROP_PX)
    assert "dynamic_batching" in found["config"]
    assert found["index"] == [{"name": "colours", "version": "1", "state": "READY"}]


def test_it_classifies_pictures_and_pixels(told):
    """One, several, by version, compressed, as BYTES and as UINT8; the id comes back."""
    answers = told["answers"]
    assert answers["single"]["id"] == "single"
    assert best(answers["single"]["rows"]) == best(answers["gzip"]) == [RED]
    assert best(answers["batch"]) == best(answers["pixels"]) == [RED, BLUE]
    assert answers["unknown"] == [[False], [False], [True]]


def test_it_gets_classes_instead_of_numbers(told):
    """score:index:label, best first; a count beyond the labels is cut to them."""
    ranked = told["answers"]["classes"]
    assert [row[0].split(":", 1)[1] for row in ranked] == [f"{RED}:red", f"{BLUE}:blue"]
    assert [len(row) for row in ranked] == [2, 2]
    (row,) = told["answers"]["every class"]
    scores = [text.split(":")[0] for text in row]
    assert len(row) == 3
    assert scores == sorted(scores, reverse=True)
    assert float(scores[0]) == pytest.approx(max(told["answers"]["single"]["rows"][0]), abs=1e-6)


def test_its_asynchronous_calls_are_answered(told):
    """Each with its own id; a failed one with its status."""
    assert told["asynchronous"]["best"] == {str(number): BLUE if number % 2 else RED for number in range(10)}
    assert told["asynchronous"]["failed"] == "StatusCode.NOT_FOUND"


def test_its_stream_goes_on_after_an_error(told):
    """In order, final flags set."""
    first, second, third = told["streamed"]
    assert (first, third) == (["a", RED, True], ["c", BLUE, True])
    assert second[0] == "error"
    assert "no model 'roses'" in second[1]


@pytest.mark.parametrize(
    ("scene", "status", "text"),
    [
        ("unreadable", "INVALID_ARGUMENT", "images[0]: NOT_AN_IMAGE"),
        ("unknown model", "NOT_FOUND", "no model 'roses'"),
        ("unknown version", "NOT_FOUND", "no version '7'"),
        ("wrong size", "INVALID_ARGUMENT", "found shape (25, 25, 3), wanted (24, 24, 3)"),
        ("unknown output", "INVALID_ARGUMENT", "found 'logits'"),
        ("load", "UNIMPLEMENTED", ""),
        ("shared memory", "UNIMPLEMENTED", ""),
    ],
)
def test_its_errors_are_told(told, scene, status, text):
    """As exceptions of the client, with status and words."""
    found, message = told["failures"][scene]
    assert found == f"StatusCode.{status}"
    assert text in message


def test_it_reads_statistics(told):
    """What was answered before them is counted: pictures, and requests at each stage alike."""
    (stats,) = told["statistics"]
    pictures = 1 + 2 + 2 + 1 + 2 + 3 + 1 + 10 + 2  # the scenes: answers, asynchronous, streamed
    requests = 7 + 10 + 2
    inference = stats["inference_stats"]
    assert (stats["version"], int(stats["inference_count"])) == ("1", pictures)
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert {stage: int(inference[stage]["count"]) for stage in stages} == dict.fromkeys(stages, requests)
    assert int(inference["fail"]["count"]) == 2  # unreadable, wrong size
    assert int(inference["queue"]["ns"]) > 0


def test_field_numbers_are_those_of_triton(told):
    """Every field of our file has the number and the kind that the client's own file gives it."""
    theirs = told["fields"]
    ours = {}

    def walk(message):
        for field in message.fields:
            ours[field.full_name] = [field.number, field.type, field.is_repeated]
        for inner in message.nested_types:
            walk(inner)

    for message in pb.DESCRIPTOR.message_types_by_name.values():
        walk(message)
    assert len(ours) > 90
    assert {name: theirs.get(name) for name in ours} == ours
