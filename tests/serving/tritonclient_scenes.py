"""Call a server as users of `tritonclient` do, and print what it said as one JSON object.

A program of its own, since the protocol's names can be loaded only once in a process: PORT PICTURE PICTURE CROP_PX.
"""

import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODEL = "colours"


def pictures(*paths):
    """The BYTES input `images` with these files."""
    made = triton.InferInput("images", [len(paths), 1], "BYTES")
    made.set_data_from_numpy(np.array([[Path(path).read_bytes()] for path in paths], dtype=np.object_))
    return [made]


def pixels(crop_px, *colours):
    """The UINT8 input `images` with one-coloured pictures."""
    made = triton.InferInput("images", [len(colours), crop_px, crop_px, 3], "UINT8")
    values = np.zeros((len(colours), crop_px, crop_px, 3), dtype=np.uint8)
    values[:] = np.array(colours, dtype=np.uint8)[:, None, None]
    made.set_data_from_numpy(values)
    return [made]


def rows(result):
    return result.as_numpy("probabilities").tolist()


def failure(call, *arguments, **fields):
    try:
        call(*arguments, **fields)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def states(client):
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL),
        "version ready": client.is_model_ready(MODEL, "1"),
        "unknown ready": client.is_model_ready("roses"),
    }


def descriptions(client):
    return {
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(MODEL, as_json=True),
        "config": client.get_model_config(MODEL, as_json=True)["config"],
        "index": client.get_model_repository_index(as_json=True)["models"],
    }


def answers(client, first, second, foreign, crop_px):
    ranked = [triton.InferRequestedOutput("probabilities", class_count=2)]
    everything = [triton.InferRequestedOutput("probabilities", class_count=99)]
    single = client.infer(MODEL, pictures(first), request_id="single", timeout=60_000_000, priority=1)
    return {
        "single": {"id": single.get_response().id, "rows": rows(single)},
        "batch": rows(client.infer(MODEL, pictures(first, second), model_version="1")),
        "pixels": rows(client.infer(MODEL, pixels(crop_px, (250, 20, 20), (20, 20, 250)))),
        "gzip": rows(client.infer(MODEL, pictures(first), compression_algorithm="gzip", client_timeout=60)),
        "classes": texts(client.infer(MODEL, pictures(first, second), outputs=ranked)),
        "unknown": client.infer(MODEL, pictures(first, second, foreign)).as_numpy("unknown").tolist(),
        "every class": texts(client.infer(MODEL, pictures(first), outputs=everything)),
    }


def texts(result):
    return [[text.decode() for text in row] for row in result.as_numpy("probabilities")]


def asynchronous(client, first, second):
    """Ten calls at once, each answered through its callback; and one that fails."""
    heard = queue.Queue()

    def hear(result, error):
        heard.put((result, error))

    for number in range(10):
        client.async_infer(MODEL, pictures(second if number % 2 else first), hear, request_id=str(number))
    done = [heard.get(timeout=60) for _ in range(10)]
    best = {result.get_response().id: int(np.argmax(rows(result)[0])) for result, _ in done}
    client.async_infer("roses", pictures(first), hear)
    return {"best": best, "failed": heard.get(timeout=60)[1].status()}


def streamed(client, first, second):
    """Three requests on one stream, the middle one wrong; its neighbours get their answers."""
    heard = queue.Queue()
    client.start_stream(lambda result, error: heard.put((result, error)))
    client.async_stream_infer(MODEL, pictures(first), request_id="a", enable_empty_final_response=True)
    client.async_stream_infer("roses", pictures(first), request_id="b")
    client.async_stream_infer(MODEL, pictures(second), request_id="c")
    told = []
    for _ in range(3):
        result, error = heard.get(timeout=60)
        if error:
            told.append(["error", error.message()])
        else:
            response = result.get_response()
            is_final = response.parameters["triton_final_response"].bool_param
            told.append([response.id, int(np.argmax(rows(result)[0])), is_final])
    client.stop_stream()
    return told


def failures(client, first, crop_px):
    unreadable = triton.InferInput("images", [1], "BYTES")
    unreadable.set_data_from_numpy(np.array([b"no picture"], dtype=np.object_))
    return {
        "unreadable": failure(client.infer, MODEL, [unreadable]),
        "unknown model": failure(client.infer, "roses", pictures(first)),
        "unknown version": failure(client.infer, MODEL, pictures(first), model_version="7"),
        "wrong size": failure(client.infer, MODEL, pixels(crop_px + 1, (0, 0, 0))),
        "unknown output": failure(
            client.infer, MODEL, pictures(first), outputs=[triton.InferRequestedOutput("logits")]
        ),
        "load": failure(client.load_model, MODEL),
        "shared memory": failure(client.get_system_shared_memory_status),
    }


def fields():
    """Number, type and repetition of every field that the client knows."""
    found = {}

    def walk(message):
        for field in message.fields:
            found[field.full_name] = [field.number, field.type, field.is_repeated]
        for inner in message.nested_types:
            walk(inner)

    for file in (triton.service_pb2.DESCRIPTOR, triton.model_config_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            walk(message)
    return found


def main(port, first, second, foreign, crop_px):
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        report = {
            "states": states(client),
            "descriptions": descriptions(client),
            "answers": answers(client, first, second, foreign, crop_px),
            "asynchronous": asynchronous(client, first, second),
            "streamed": streamed(client, first, second),
            "failures": failures(client, first, crop_px),
            "fields": fields(),
            "statistics": client.get_inference_statistics(MODEL, as_json=True)["model_stats"],
        }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
