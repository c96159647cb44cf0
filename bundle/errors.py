"""The expected errors of a bundle and its pictures.

CalotypeError                 anything a person can act on; its text says what was found, wanted, and next
├── BundleError               a model folder is missing, incomplete, tampered with, or of another format
│   ├── GoldenError           the files are whole, but the golden pictures get other answers than at export
│   └── SignatureError        no signature of the bundle, none by a trusted key, or one of other contents
├── KeyFileError              a file of keys that cannot be read, or holds keys of another kind
├── ProviderError             the asked-for execution provider is not the one that really runs
└── ImageError                one picture cannot be read; `code` names why, as in protos/classifier.proto
    ├── EmptyImageError
    ├── NotAnImageError
    ├── UnsupportedFormatError
    ├── TruncatedImageError
    ├── CorruptImageError
    ├── TooManyPixelsError
    └── ImageTooLargeError
"""

from typing import ClassVar


class CalotypeError(Exception):
    """An expected error: shown to a person as one line, without a traceback."""


class BundleError(CalotypeError):
    """A model folder that must not be served."""


class GoldenError(BundleError):
    """A bundle whose golden pictures do not get the answers recorded at export."""


class SignatureError(BundleError):
    """A bundle that no trusted key has signed as it stands."""


class KeyFileError(CalotypeError):
    """A PEM file without the Ed25519 key that is wanted."""


class ProviderError(CalotypeError):
    """An execution provider that was asked for and is not there."""


class ImageError(CalotypeError):
    """A picture that cannot become model input; its neighbours are not concerned."""

    code: ClassVar[str] = "CORRUPT"


class EmptyImageError(ImageError):
    """Zero bytes."""

    code: ClassVar[str] = "EMPTY"


class NotAnImageError(ImageError):
    """Bytes that no picture format begins with."""

    code: ClassVar[str] = "NOT_AN_IMAGE"


class UnsupportedFormatError(ImageError):
    """A picture, but of a format or pixel type that is not read."""

    code: ClassVar[str] = "UNSUPPORTED_FORMAT"


class TruncatedImageError(ImageError):
    """A picture whose end is missing."""

    code: ClassVar[str] = "TRUNCATED"


class CorruptImageError(ImageError):
    """A picture whose inside contradicts its header."""

    code: ClassVar[str] = "CORRUPT"


class TooManyPixelsError(ImageError):
    """A header that announces more pixels than the limit; nothing was decoded."""

    code: ClassVar[str] = "TOO_MANY_PIXELS"


class ImageTooLargeError(ImageError):
    """More encoded bytes than the limit; nothing was decoded."""

    code: ClassVar[str] = "TOO_LARGE"
