# SPDX-License-Identifier: Apache-2.0
"""How container images are named inside an ostree repository and in origin files, spelled as bootc spells them.

Only the standard library is imported: the worker uses these names under the system's interpreter.
"""

from __future__ import annotations

import re

LAYER_PREFIX = "ostree/container/blob"
IMAGE_PREFIX = "ostree/container/image"

META_DIGEST = "ostree.manifest-digest"
META_MANIFEST = "ostree.manifest"
META_CONFIG = "ostree.container.image-config"
META_VERSION = "version"
# On a layer's commit: what a tar says and an ostree tree cannot (see layer.py). Layers without it are not ours.
META_LAYER = "lashd.layer"
# On an image's commit: what could not be held, as text to be shown.
META_DROPPED = "lashd.dropped"

# The container library's transports, as origin files write them and as skopeo wants them.
_TRANSPORTS = {
    "registry": "docker://",
    "oci": "oci:",
    "oci-archive": "oci-archive:",
    "docker-archive": "docker-archive:",
    "containers-storage": "containers-storage:",
    "dir": "dir:",
}
_UNVERIFIED = ("ostree-unverified-registry", "ostree-unverified-image")


def escape(text: str) -> str:
    """`text` as part of an ostree ref: `_` followed by the hexadecimal code and `_` for what a ref may not hold."""
    if not text or "\0" in text:
        raise ValueError(f"{text!r} cannot be named in an ostree ref")
    out = []
    after_word = False
    for at, char in enumerate(text):
        word = char.isascii() and char.isalnum()
        if word or char == "-" or (char == "/" and after_word and at + 1 < len(text)):
            out.append(char)
        elif char == "_":
            out.append("__")
        else:
            out.append(f"_{ord(char):02X}_")
        after_word = word
    return "".join(out)


def unescape(text: str) -> str:
    """The reverse of `escape`. Raises ValueError for what it cannot have made."""
    if not re.fullmatch(r"(?:[A-Za-z0-9/-]|__|_[0-9A-Fa-f]{2,6}_)+", text):
        raise ValueError(f"{text!r} is not an escaped ref")
    return re.sub(r"_([0-9A-Fa-f]*)_", lambda found: chr(int(found[1], 16)) if found[1] else "_", text)


def layer_ref(digest: str) -> str:
    return f"{LAYER_PREFIX}/{escape(digest)}"


def image_ref(transport: str, reference: str) -> str:
    return f"{IMAGE_PREFIX}/{escape(skopeo_name(transport, reference))}"


def skopeo_name(transport: str, reference: str) -> str:
    """The image as skopeo takes it on its command line. Raises ValueError for an unknown transport."""
    if transport not in _TRANSPORTS:
        raise ValueError(f"'{transport}' is not a transport of container images")
    return _TRANSPORTS[transport] + reference


def parse_origin_image(text: str) -> tuple[str, str, str]:
    """(reference, transport, signature) of an origin's `container-image-reference`. Raises ValueError.

    `signature` is the verification word as written, for `ostree-remote-…` together with the remote's name.
    """
    word, _, rest = text.partition(":")
    if word in ("ostree-remote-registry", "ostree-remote-image"):
        remote, _, rest = rest.partition(":")
        signature = f"{word}:{remote}"
    elif word in (*_UNVERIFIED, "ostree-image-signed"):
        signature = word
    else:
        raise ValueError(f"{text!r} does not begin with a known kind of image reference")
    if word.endswith("-registry"):
        transport = "registry"
    else:
        transport, _, rest = rest.partition(":")
        if transport == "docker":
            if not rest.startswith("//"):
                raise ValueError(f"{text!r} lacks '//' after 'docker:'")
            transport, rest = "registry", rest[2:]
    if transport not in _TRANSPORTS or not rest:
        raise ValueError(f"{text!r} names no image of a known transport")
    return rest, transport, signature


def format_origin_image(reference: str, transport: str, signature: str) -> str:
    """The value of `container-image-reference`, canonical as bootc writes it. Raises ValueError."""
    if signature in _UNVERIFIED:
        if transport == "registry":
            return f"ostree-unverified-registry:{reference}"
        signature = "ostree-unverified-image"
    signature = signature.replace("ostree-remote-registry:", "ostree-remote-image:", 1)
    return f"{signature}:{skopeo_name(transport, reference)}"
