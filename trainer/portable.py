"""One ONNX file from a decoded picture of any size to calibrated probabilities, for programs that are not ours.

    image          uint8 (H, W, 3), upright RGB as `bundle.preprocess.decode` returns it
    probabilities  float32 (C,), softmax of the logits by the bundle's temperature, in the order of its labels
    similarity     float32 (1,), -1..1: below the contract's `unknown_below` the picture is unlike what was trained on

Standard operators of opset 18 alone. Decoding stays with the caller. The centre square is held as float32: 12 bytes a
pixel of it, so scale huge pictures down while decoding, as `decode` does.

The resize is written as two products with a matrix of filter weights, not as the operator Resize, which cannot equal
`to_input`: it filters rows before columns, and rounds or clips between the two as each runtime likes. Measured on 250
photographs (Lite0, 1,000 classes): one Resize is up to 16 grey levels off, two of them up to 2, or 1 with one other
top-1; this is equal, but for single pixels of huge pictures, where a float32 sum ends on the other side of a half.
Antialiasing (the filter widens with the scale) and `exclude_outside` (each row's weights sum to 1) are in the matrix.
"""

from pathlib import Path
from string import Template
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import compose, parser

from bundle.contract import CONTRACT_KEY, IMAGES, LOGITS, SIMILARITY, Contract, check_embedded
from bundle.manifest import Twin
from bundle.preprocess import decode, to_input
from bundle.repository import Bundle, file_sha256
from bundle.runtime import open_model
from bundle.scores import probabilities
from trainer.data import Picture
from trainer.errors import ParityError
from trainer.onnx_graph import MAX_IR, OPSET, save
from trainer.proof import Parity

IMAGE: Final = "image"
PROBABILITIES: Final = "probabilities"
PORTABLE_FILE: Final = "model.portable.onnx"
MAX_GREY_LEVELS: Final = 1
MAX_DIFFERENCE: Final = 1e-2  # of a probability, of a similarity: what single pixels that are one grey level off may do
TIE: Final = 2**-22  # of probabilities: float32 rounding orders closer ones as it likes, the bundle's float64 does not
_HEADER: Final = f'<ir_version: {MAX_IR}, opset_import: ["": {OPSET}]>\n'

# Pixel to weight: filter((j + 1/2) - (i + 1/2) * scale, widened by the scale where it shrinks), rows summing to 1, then
# rounded to the 16-bit fixed point of the SIMD library: the largest power of two that keeps every weight below 2^15.
_FRONT: Final = """
front (uint8[height, width, 3] image) => (uint8[1, $crop, $crop, 3] images) <
    int64[1] first = {0}, int64[1] second = {1}, int64[1] two = {2},
    int64[1] crop_px = {$crop}, double resize_px = {$resize}, double crop_px_d = {$crop},
    int64 start = {0}, int64 step = {1}, double zero = {0}, double one = {1}, double half = {0.5},
    double fixed_limit = {32767.5}, double log_2 = {0.6931471805599453}, double max_bits = {22}, double base = {2},
    int64[2] square_axes = {0, 1}, float half_level = {0.5}, float black = {0}, float white = {255}$constants
> {
    shape = Shape (image)
    height = Slice (shape, first, second)
    width = Slice (shape, second, two)
    shorter = Min (height, width)
    crops = Mul (shorter, crop_px)
    crops_d = Cast <to = 11> (crops)
    exact_side = Div (crops_d, resize_px)
    rounded_side = Round (exact_side)
    any_side = Cast <to = 7> (rounded_side)
    side = Max (any_side, second)
    free_height = Sub (height, side)
    free_width = Sub (width, side)
    top = Div (free_height, two)
    left = Div (free_width, two)
    bottom = Add (top, side)
    right = Add (left, side)
    corner = Concat <axis = 0> (top, left)
    far_corner = Concat <axis = 0> (bottom, right)
    square = Slice (image, corner, far_corner, square_axes)
    planes_u8 = Transpose <perm = [2, 0, 1]> (square)
    planes = Cast <to = 1> (planes_u8)

    side_d = Cast <to = 11> (side)
    scale = Div (side_d, crop_px_d)
    spread = Max (scale, one)
    output_count = Squeeze (crop_px)
    outputs = Range (start, output_count, step)
    outputs_d = Cast <to = 11> (outputs)
    output_centres = Add (outputs_d, half)
    centres_row = Mul (output_centres, scale)
    centres = Unsqueeze (centres_row, second)
    input_count = Squeeze (side)
    inputs = Range (start, input_count, step)
    inputs_d = Cast <to = 11> (inputs)
    input_centres = Add (inputs_d, half)
    offsets = Sub (input_centres, centres)
    widened = Div (offsets, spread)
    x = Abs (widened)
    $filter
    sums = ReduceSum <keepdims = 1> (values, second)
    weights = Div (values, sums)
    largest = ReduceMax <keepdims = 0> (weights)
    room = Div (fixed_limit, largest)
    room_log = Log (room)
    room_bits = Div (room_log, log_2)
    whole_bits = Floor (room_bits)
    bits = Min (whole_bits, max_bits)
    unit = Pow (base, bits)
    scaled = Mul (weights, unit)
    fixed = Round (scaled)
    fixed_weights = Div (fixed, unit)
    columns = Cast <to = 1> (fixed_weights)
    rows = Transpose <perm = [1, 0]> (columns)

    high = MatMul (columns, planes)
    high_up = Add (high, half_level)
    high_floor = Floor (high_up)
    high_levels = Clip (high_floor, black, white)
    wide = MatMul (high_levels, rows)
    wide_up = Add (wide, half_level)
    wide_floor = Floor (wide_up)
    levels = Clip (wide_floor, black, white)
    levels_u8 = Cast <to = 2> (levels)
    picture = Transpose <perm = [1, 2, 0]> (levels_u8)
    images = Unsqueeze (picture, first)
}
"""
_FILTERS: Final = {  # name -> (constants, nodes that make `values` from distances `x`)
    "bilinear": (
        "",
        """
    fallen = Sub (one, x)
    values = Max (fallen, zero)""",
    ),
    # Keys 1981, "Cubic convolution interpolation", eq. 15 with a = -1/2 (Catmull-Rom), by Horner
    "bicubic": (
        ", double near_3 = {1.5}, double near_2 = {-2.5}, double far_3 = {-0.5}, double far_2 = {2.5}, "
        "double far_1 = {-4}, double far_0 = {2}, double two_d = {2}",
        """
    near_a = Mul (x, near_3)
    near_b = Add (near_a, near_2)
    near_c = Mul (near_b, x)
    near_d = Mul (near_c, x)
    near = Add (near_d, one)
    far_a = Mul (x, far_3)
    far_b = Add (far_a, far_2)
    far_c = Mul (far_b, x)
    far_d = Add (far_c, far_1)
    far_e = Mul (far_d, x)
    far = Add (far_e, far_0)
    is_near = Less (x, one)
    is_far = Less (x, two_d)
    beyond = Where (is_far, far, zero)
    values = Where (is_near, near, beyond)""",
    ),
}
_BACK: Final = """
back (float[1, $classes] logits) => (float[$classes] probabilities) <
    int64[1] batch_axis = {0}, float temperature = {$temperature}
> {
    calibrated = Div (logits, temperature)
    scores = Softmax <axis = 1> (calibrated)
    probabilities = Squeeze (scores, batch_axis)
}
"""


def write_portable(contract: Contract, classifier: Path, path: Path) -> Twin:
    """Put the bundle's preprocessing before a fp32 graph that `write_onnx` wrote, and its calibration behind."""
    model = compose.merge_models(_front(contract), onnx.load(classifier), io_map=[(IMAGES.name, IMAGES.name)])
    model = compose.merge_models(
        model, _back(contract), io_map=[(LOGITS.name, LOGITS.name)], producer_name="calotype", producer_version=""
    )
    del model.opset_import[1:]  # each merge repeats it
    probabilities_end, similarity = sorted(model.graph.output, key=lambda end: end.name)
    similarity.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.output[:]
    model.graph.output.extend([probabilities_end, similarity])
    save(model, contract, path)
    return Twin(runtime="portable", file=path.name, sha256=file_sha256(path))


def prove_portable(bundle: Bundle, twin: Twin, files: tuple[Picture, ...]) -> Parity:
    """Compare the portable graph with the bundle's own decode, resize, fp32 ONNX model and softmax on real files.

    Raises ParityError where a picture is more than one grey level off, a top-1 differs beyond a TIE, or a probability
    or the similarity is off by more than MAX_DIFFERENCE; BundleError where the file is not what its manifest says.
    """
    contract = bundle.manifest.contract
    session = open_portable(bundle, twin)
    model = open_model(bundle)
    largest, offenders = 0.0, []
    for item in files:
        picture = decode(item.path.read_bytes(), cover_px=contract.preprocess.resize_px)
        wanted_input = to_input(picture, contract.preprocess)
        output = model.run(wanted_input[np.newaxis])
        wanted = probabilities(output.logits[0], temperature=contract.temperature)
        found, similarity, found_input = session.run(
            [PROBABILITIES, SIMILARITY.name, IMAGES.name], {IMAGE: np.asarray(picture)}
        )
        levels = int(np.abs(found_input[0].astype(int) - wanted_input.astype(int)).max())
        difference = float(np.abs(found - wanted).max())
        likeness_difference = float(np.abs(similarity - output.similarity).max())
        largest = max(largest, difference)
        is_top1 = found.max() - found[wanted.argmax()] <= TIE
        within = difference <= MAX_DIFFERENCE and likeness_difference <= MAX_DIFFERENCE
        if not (is_top1 and levels <= MAX_GREY_LEVELS and within):  # written so that NaN fails
            offenders.append(
                f"  {item.path.name}  {levels} grey levels, a probability by {difference:.1e}, "
                f"the similarity by {likeness_difference:.1e}"
            )
    if offenders:
        raise ParityError(
            f"the portable graph disagrees with the bundle on {len(offenders)} of {len(files)} pictures "
            f"(wanted equal labels, at most {MAX_GREY_LEVELS} grey level, the rest within {MAX_DIFFERENCE:g}); "
            "nothing was written\n" + "\n".join(offenders[:10])
        )
    return Parity(runtime="portable", picture_count=len(files), equal_top1=len(files), max_difference=largest)


def open_portable(bundle: Bundle, twin: Twin) -> ort.InferenceSession:
    """Open the portable graph with one output more, the resized picture, so that the resize can be compared too."""
    path = bundle.folder / twin.file
    model = onnx.load_from_string(bundle.read(twin.file, twin.sha256))
    embedded = {entry.key: entry.value for entry in model.metadata_props}
    check_embedded(bundle.manifest.contract, embedded.get(CONTRACT_KEY), source=str(path))
    crop = bundle.manifest.contract.preprocess.crop_px
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(IMAGES.name, onnx.TensorProto.UINT8, [1, crop, crop, 3])
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"])


def _front(contract: Contract) -> onnx.ModelProto:
    spec = contract.preprocess
    constants, nodes = _FILTERS[spec.interpolation]
    text = Template(_FRONT).substitute(crop=spec.crop_px, resize=spec.resize_px, constants=constants, filter=nodes)
    return _parsed(text, prefix="preprocess_")


def _back(contract: Contract) -> onnx.ModelProto:
    classes, temperature = len(contract.labels), f"{contract.temperature:.9g}"  # nine digits name every float32
    return _parsed(Template(_BACK).substitute(classes=classes, temperature=temperature), prefix="calibrate_")


def _parsed(text: str, *, prefix: str) -> onnx.ModelProto:
    """Return a graph whose inner names begin with `prefix`, so that they meet none of the network's."""
    model = parser.parse_model(_HEADER + text)
    return compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)
