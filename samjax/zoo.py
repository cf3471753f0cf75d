"""Published models by name: where their files are, what they have to be, and their licences.

Sizes are in bytes. A checksum stands here only where several public sources agree on it: for Meta's
and MobileSAM's files micro-sam's `util.py` and Slicer's Segment Anything, for SAM-HQ's ViT-H
refiners' conversion scripts. (The digits in the names of Meta's files begin their MD5.) A file
without one is trusted when it first comes, and its checksum is kept.
"""

import dataclasses
import re

META_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
HUGGINGFACE_URL = "https://huggingface.co/"

ULTRALYTICS_URL = "https://github.com/ultralytics/assets/releases/download/v8.3.0/"

APACHE = "Apache-2.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to fetch. `size` and `sha256` are None where they are not known."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A model that can be loaded by name: one torch file, or what is in a Hugging Face repository.

    `repository` is "OWNER/MODEL" there; `file` is None for it, since the folder is looked into. A
    `detector` is a YOLOv8, whose file is read without torch (`samjax.detection.load`). `licence` is
    that of the weights, as their publisher states it; None where it is not known here.
    """

    name: str
    file: RemoteFile | None = None
    repository: str | None = None
    other_names: tuple[str, ...] = ()
    licence: str | None = APACHE
    publisher: str = ""
    detector: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        own = (self.file.name,) if self.file else ()
        return tuple(dict.fromkeys((self.name, *own, *self.other_names)))

    @property
    def needs_torch(self) -> bool:
        return self.file is not None and not self.detector


def _meta(name: str, file: str, size: int, sha256: str, *other_names: str) -> Published:
    return Published(
        name=name,
        file=RemoteFile(url=META_URL + file, name=file, size=size, sha256=sha256),
        other_names=other_names,
        publisher="Meta",
    )


def _hq(name: str, size: int | None = None, sha256: str | None = None) -> Published:
    file = f"sam_{name}.pth"
    url = f"{HUGGINGFACE_URL}lkeab/hq-sam/resolve/main/{file}"
    return Published(
        name=name,
        file=RemoteFile(url=url, name=file, size=size, sha256=sha256),
        publisher="SAM-HQ",
    )


def _detector(name: str) -> Published:
    file = f"{name}.pt"
    return Published(
        name=name,
        file=RemoteFile(url=ULTRALYTICS_URL + file, name=file),
        licence="AGPL-3.0",
        publisher="Ultralytics",
        detector=True,
    )


PUBLISHED: tuple[Published, ...] = (
    _meta(
        "vit_b", "sam_vit_b_01ec64.pth", 375042383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", "sam_b.pt",
    ),
    _meta(
        "vit_l", "sam_vit_l_0b3195.pth", 1249524607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", "sam_l.pt",
    ),
    _meta(
        "vit_h", "sam_vit_h_4b8939.pth", 2564550879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    Published(
        name="mobile_sam",
        file=RemoteFile(
            url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
            name="mobile_sam.pt",
            size=40728226,
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        publisher="MobileSAM",
    ),
    _hq("hq_vit_b"),
    _hq("hq_vit_l"),
    _hq(
        "hq_vit_h", 2570940653,
        "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35",
    ),
    _hq(
        "hq_vit_tiny", None,
        "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196",
    ),
    *(
        Published(name=f"facebook/sam-vit-{size}", repository=f"facebook/sam-vit-{size}",
                  publisher="Meta")
        for size in ("base", "large", "huge")
    ),
    *(_detector(f"FastSAM-{size}") for size in "sx"),
    *(_detector(f"yolov8{size}{task}") for task in ("", "-seg") for size in "nsmlx"),
)  # fmt: skip
"""In the order of `samjax models`. "sam_b.pt" and "sam_l.pt" are Ultralytics' names for Meta's
weights, which are fetched from Meta."""

_REPOSITORY = re.compile(r"hf://([\w.-]+/[\w.-]+?)/?")


def find(name: str) -> Published | None:
    """The model of that name, or any of Hugging Face as "hf://OWNER/MODEL"; None for others."""
    for model in PUBLISHED:
        if name in model.names:
            return model
    if match := _REPOSITORY.fullmatch(name):
        known = find(match[1])
        return known or Published(
            name=name, repository=match[1], licence=None, publisher=match[1].split("/")[0]
        )
    return None
