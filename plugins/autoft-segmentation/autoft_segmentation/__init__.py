"""An autoft plugin for semantic segmentation: the data format `image-mask-folder` and the head `semantic-segmentation`."""

from __future__ import annotations

from autoft import hookimpl
from autoft.specs import DataFormat, Head


@hookimpl
def autoft_data() -> list[DataFormat]:
    """Offer folders of images with a mask for each."""
    from autoft_segmentation import data

    return [
        DataFormat(
            name="image-mask-folder",
            modality="image",
            detect=data.detect,
            load=data.load,
            before=("image-folder",),
            help="images/ and masks/ of the same names, optionally below train/, val/ and test/; masks are PNG of ids.",
        )
    ]


@hookimpl
def autoft_heads() -> list[Head]:
    """Offer semantic segmentation."""
    from autoft_segmentation import head

    return [head.make_head()]
