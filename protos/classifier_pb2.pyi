from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "version", "images", "top_k", "min_score")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    images: _containers.RepeatedScalarFieldContainer[bytes]
    top_k: int
    min_score: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., images: _Optional[_Iterable[bytes]] = ..., top_k: _Optional[int] = ..., min_score: _Optional[float] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("results", "model", "version")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ImageResult]
    model: str
    version: str
    def __init__(self, results: _Optional[_Iterable[_Union[ImageResult, _Mapping]]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ImageResult(_message.Message):
    __slots__ = ("predictions", "error", "unknown")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    error: ImageError
    unknown: bool
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., error: _Optional[_Union[ImageError, _Mapping]] = ..., unknown: _Optional[bool] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("index", "label", "score")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    score: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class ImageError(_message.Message):
    __slots__ = ("code", "message")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_UNSPECIFIED: _ClassVar[ImageError.Code]
        EMPTY: _ClassVar[ImageError.Code]
        NOT_AN_IMAGE: _ClassVar[ImageError.Code]
        UNSUPPORTED_FORMAT: _ClassVar[ImageError.Code]
        TRUNCATED: _ClassVar[ImageError.Code]
        CORRUPT: _ClassVar[ImageError.Code]
        TOO_MANY_PIXELS: _ClassVar[ImageError.Code]
        TOO_LARGE: _ClassVar[ImageError.Code]
    CODE_UNSPECIFIED: ImageError.Code
    EMPTY: ImageError.Code
    NOT_AN_IMAGE: ImageError.Code
    UNSUPPORTED_FORMAT: ImageError.Code
    TRUNCATED: ImageError.Code
    CORRUPT: ImageError.Code
    TOO_MANY_PIXELS: ImageError.Code
    TOO_LARGE: ImageError.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ImageError.Code
    message: str
    def __init__(self, code: _Optional[_Union[ImageError.Code, str]] = ..., message: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "state", "reason", "labels", "preprocess", "provider", "precision", "digest", "unknown_below")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Model.State]
        LOADING: _ClassVar[Model.State]
        READY: _ClassVar[Model.State]
        DRAINING: _ClassVar[Model.State]
        FAILED: _ClassVar[Model.State]
    STATE_UNSPECIFIED: Model.State
    LOADING: Model.State
    READY: Model.State
    DRAINING: Model.State
    FAILED: Model.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_BELOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: Model.State
    reason: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    preprocess: PreprocessSpec
    provider: str
    precision: str
    digest: str
    unknown_below: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[Model.State, str]] = ..., reason: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., preprocess: _Optional[_Union[PreprocessSpec, _Mapping]] = ..., provider: _Optional[str] = ..., precision: _Optional[str] = ..., digest: _Optional[str] = ..., unknown_below: _Optional[float] = ...) -> None: ...

class PreprocessSpec(_message.Message):
    __slots__ = ("resize_px", "crop_px", "interpolation", "decode_rule")
    RESIZE_PX_FIELD_NUMBER: _ClassVar[int]
    CROP_PX_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    DECODE_RULE_FIELD_NUMBER: _ClassVar[int]
    resize_px: int
    crop_px: int
    interpolation: str
    decode_rule: str
    def __init__(self, resize_px: _Optional[int] = ..., crop_px: _Optional[int] = ..., interpolation: _Optional[str] = ..., decode_rule: _Optional[str] = ...) -> None: ...
