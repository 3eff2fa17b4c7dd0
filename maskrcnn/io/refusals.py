"""What a decoder, a raster or a store can answer for one image that cannot be processed: one table.

Each answer has an error code and a message that says what the file is, or what happened, and what to do. Everything
that reads an input raises its `ItemError` from here:

    raise Refusal.TRUNCATED.error(format="PNG")
    raise Refusal.TIFF_COMPRESSION.error(codec=tiff_compression(34712))

To add an answer, add a member: its code from `errors.ERROR_CODES`, and its message, of which the values in braces are
given to `error`. These are names of formats, numbers with their unit, and the words of this project. The text of a
library's exception and the number of an error or a codec are never among them: the exception becomes the cause
(`raise … from error`), and a number gets its name from a table.

What every object of a store shares, like expired credentials, is marked `True`: it stops the run, and is no image's.

A file that is sound but cannot be read is never `corrupt`: it is `unsupported_format` if the format, the codec or the
layout is the reason, and `unsupported_pixels` if its values cannot be converted to 8-bit colours without more
information from the user.
"""

from enum import Enum
from typing import Any, Final

from ..errors import ItemError

_CONVERT: Final = "convert it to JPEG, PNG or TIFF"
_COPY: Final = "copy it again from its source"
_RETRY: Final = "`maskrcnn retry` processes the new content"


class Refusal(Enum):
    """An answer: its error code, and its message with the names of its values in braces."""

    # The file

    EMPTY = "empty_file", f"zero bytes: {_COPY}"
    TOO_MANY_BYTES = (
        "too_many_bytes",
        "{count:,} bytes, more than the limit of {limit:,}: store it compressed, or divide it",
    )
    TOO_MANY_BYTES_READ = (
        "too_many_bytes",
        "more than the limit of {limit:,} bytes: store it compressed, or divide it",
    )
    NOT_AN_IMAGE = "not_an_image", "the content is {what}: leave it out, or put the image in its place"
    RESOURCE_FORK = (
        "not_an_image",
        "the content is a macOS resource fork, which belongs to a file of the same name without `._`: delete it",
    )
    LFS_POINTER = (
        "not_an_image",
        "the content is a Git LFS pointer, whose content was not fetched: run `git lfs pull`",
    )

    CHANGED_AS_TEXT = (
        "corrupt",
        "its bytes were changed as if they were text (line ends, or characters of UTF-8): copy it again as binary data",
    )
    LEADING_BYTES = (
        "corrupt",
        "{format} behind {count} that do not belong to it, such as a byte order mark or blank lines: remove them",
    )

    # Formats

    FORMAT = "unsupported_format", "{format} is not read: " + _CONVERT
    RASTER_FORMAT = (
        "unsupported_format",
        "{format} is not read: convert it to GeoTIFF or COG (gdal_translate, or gdalwarp for a mosaic)",
    )
    RAW_PHOTO = (
        "unsupported_format",
        "{format}, a camera's raw file: develop it to JPEG or TIFF; the preview in it is not the picture",
    )
    PREVIEW = (
        "unsupported_format",
        "TIFF whose first picture is marked as a preview (a reduced-resolution version), and whose full picture is not "
        "in the file or cannot be read: export the full picture",
    )
    NEEDS_EXTRA = (
        "unsupported_format",
        "{format} needs the extra {extra}: pip install 'maskrcnn-ray[{extra}]', or convert it to JPEG",
    )
    NEEDS_PILLOW = (
        "unsupported_format",
        "{format} is not read by this build of Pillow: install Pillow's own wheel, or " + _CONVERT,
    )
    CODEC = "unsupported_format", "{format} compressed as {codec}, which is not read: " + _CONVERT
    TIFF_COMPRESSION = (
        "unsupported_format",
        "TIFF compressed with {codec}, which is not read: rewrite it with deflate, LZW or JPEG compression, in the "
        "program that wrote it or by gdal_translate -co COMPRESS=DEFLATE",
    )
    LAYOUT = "unsupported_format", "{format} {layout}, which is not read: " + _CONVERT
    GEOREFERENCED_JPEG_2000 = (
        "unsupported_format",
        "JPEG 2000 with coordinates, which are not read: convert it to GeoTIFF or COG (gdal_translate), or read it as "
        "an ordinary image with --assume-crs none",
    )

    # Archives

    ARCHIVE_EMPTY = "empty_file", f"the archive has zero bytes: {_COPY}"
    ARCHIVE_DAMAGED = (
        "corrupt",
        f"damaged; members behind the damage are not known: {_COPY}, and plan a new run",
    )
    ARCHIVE_TRUNCATED = (
        "truncated",
        f"the archive ends early; what follows is not known: {_COPY}, and plan a new run",
    )
    ARCHIVE_OTHER = (
        "unsupported_format",
        "not the kind of archive that its suffix says: give it the suffix of what it contains, or pack it anew",
    )
    ARCHIVE_ON_THE_WEB = (
        "unsupported_format",
        "archives on the web are not read in parts: copy them to a store",
    )
    MEMBER_MISSING = "not_found", "the archive has no member of this name; check it"
    MEMBER_TRUNCATED = "truncated", f"the archive ends before this member does: {_COPY}"
    MEMBER_DAMAGED = "corrupt", f"its bytes in the archive are damaged (length or checksum): {_COPY}"
    MEMBER_OVERLAPS = (
        "corrupt",
        "its bytes in the archive are another member's too, as in a zip bomb: leave it out",
    )
    MEMBER_ENCRYPTED = (
        "unsupported_format",
        "encrypted in the archive: decrypt it, and pack it without a password",
    )
    MEMBER_COMPRESSION = (
        "unsupported_format",
        "compressed in the archive with {codec}, which is not read: pack it with deflate, or uncompressed",
    )
    MEMBER_LINK = (
        "not_found",
        "a link in the archive to a file that is not before it in the archive: pack the file itself",
    )
    MEMBER_SPECIAL = "unsupported_format", "a device or a pipe in the archive, which is no file: leave it out"
    MEMBER_SPARSE = (
        "unsupported_format",
        "stored in the archive as a sparse file, which no picture is: pack it without --sparse",
    )

    CONTENT_UNKNOWN = "changed", "what is in it was not known when the run was planned: plan a new run"

    # Tables of pictures

    TABLE_EMPTY = "empty_file", f"the table has zero bytes: {_COPY}"
    TABLE_DAMAGED = (
        "corrupt",
        "no sound table of the format that its suffix says (or damaged, cut off, encrypted); its rows are not known: "
        f"{_COPY}, and plan a new run",
    )
    TABLE_ON_THE_WEB = (
        "unsupported_format",
        "tables on the web are not read in parts: copy them to a store",
    )
    ROW_MISSING = (
        "not_found",
        "the table has no row of this number, or no column of this name with pictures; check the uri",
    )
    ROW_NULL = (
        "not_found",
        "no picture (null) in this row of the table: leave the row out, or put the picture in its place; files that a "
        "table only names are read from a column `uri`",
    )
    ROW_GROUP_DAMAGED = (
        "corrupt",
        f"its part of the table, a row group or a record batch, is damaged: {_COPY}, or write it again",
    )
    RECORD_BATCH_LARGE = (
        "unsupported_format",
        "in a compressed record batch with more than {limit} MiB of pictures: write the table with smaller ones, or "
        "uncompressed, or to Parquet",
    )
    ROW_GROUP_ENCODING = (
        "unsupported_format",
        "compressed or encoded in the table in a way that is not read: write the table again with zstd or snappy",
    )

    # Pixels

    PIXELS = (
        "unsupported_pixels",
        "{what}; convert it to 8 bits with a scaling of your choice",
    )
    TIFF_PIXELS = (
        "unsupported_pixels",
        "{what}; convert it to 8 bits with a scaling of your choice; GeoTIFFs are read by the raster mode, with a "
        "stated scaling",
    )
    PIXEL_TYPE = (
        "unsupported_pixels",
        "pixels of type {dtype} cannot be converted to a brightness: convert the raster to float32 or to integers",
    )
    COLOR_SPACE = (
        "unsupported_pixels",
        "its colours are {space}, which windows do not convert: convert them to RGB",
    )
    BANDS_TO_CHOOSE = "unsupported_pixels", "its bands are {bands}; choose bands with --bands"
    NO_SUCH_BAND = (
        "unsupported_pixels",
        "it has no band {band}; its number of bands is {count}: choose others with --bands",
    )
    RANGE_NEEDED = "unsupported_pixels", "pixels of type {dtype} need a range; give one with --scale"
    NO_SCALE = "unsupported_pixels", "band {band} has no scale and offset: give a range with --scale"
    INVALID_SCALE = (
        "unsupported_pixels",
        "band {band} has an invalid scale {scale} or offset {offset}; give a range with --scale",
    )

    # Sizes

    TOO_MANY_PIXELS = (
        "too_many_pixels",
        "{width} x {height} pixels, more than the limit of {limit:,}: make it smaller, or divide it; a GeoTIFF can be "
        "read in windows (--window)",
    )
    TOO_MANY_PIXELS_UNKNOWN = (
        "too_many_pixels",
        "{format}: more pixels than the limit of {limit:,}: make it smaller, or divide it",
    )
    BLOCK_TOO_LARGE = (
        "too_many_pixels",
        "{width} x {height} pixels in a TIFF of blocks of {block_width} x {block_height}, which are too large to "
        "decode: rewrite it in smaller tiles (gdal_translate -co TILED=YES)",
    )
    ELONGATED = (
        "aspect",
        "{width} x {height} pixels, more elongated than 1 : {limit:.12g}: divide it along its long side",
    )

    # Damage

    TRUNCATED = "truncated", "{format}: the file ends before the image does: " + _COPY
    ZEROS = (
        "truncated",
        "{format}: zeros are in place of some of its pixels, as in a download that did not finish: " + _COPY,
    )
    HEADER_DAMAGED = "corrupt", "{format}: its header is damaged: " + _COPY + ", or export it anew"
    DATA_DAMAGED = "corrupt", "{format}: its pixel data are damaged: " + _COPY + ", or export it anew"
    NO_SIZE = (
        "corrupt",
        "{format}: the header states a size of {width} x {height} pixels: " + _COPY + ", or export it anew",
    )

    # The decoding process

    NO_MEMORY = "out_of_memory", "{format}: not enough memory to decode it: give each worker more memory"
    PROCESS_KILLED = (
        "out_of_memory",
        "the decoding process was killed, probably by the kernel because memory was short: give each worker more "
        "memory",
    )
    PROCESS_CRASHED = (
        "worker_crash",
        "the decoding process crashed on this image ({how}): export the image anew",
    )
    PROCESS_TIMED_OUT = (
        "timeout",
        "not decoded within {seconds:g} s: export the image anew, or make it smaller",
    )

    # Coordinates

    GROUND_CONTROL_POINTS = "no_crs", "it has ground control points only; warp it (gdalwarp) first"
    RATIONAL_POLYNOMIALS = (
        "no_crs",
        "it has rational polynomial coefficients only; orthorectify it first",
    )
    NO_TRANSFORM = (
        "no_crs",
        "no transform from pixels to coordinates in the file; a world file beside it is not read (gdal_translate "
        "-a_srs EPSG:… writes it into the raster): --assume-crs none reads it as an ordinary image",
    )
    SINGULAR_TRANSFORM = "no_crs", "its transform maps pixels to no area; write a valid transform"
    NO_CRS = "no_crs", "no coordinate reference system; give one with --assume-crs"

    CRS_UNKNOWN = (
        "bad_georeference",
        "PROJ does not know its coordinate reference system, {crs}: assign another (gdal_edit -a_srs EPSG:…)",
    )
    CRS_WITHOUT_PLANE = (
        "bad_georeference",
        "its coordinate reference system, {crs}, has no longitude and latitude that PROJ can compute: assign another "
        "(gdal_edit -a_srs EPSG:…)",
    )
    COORDINATES = (
        "bad_georeference",
        "its coordinates do not fit {crs} (x from {xmin:.12g} to {xmax:.12g}, y from {ymin:.12g} to {ymax:.12g}): "
        "{why}; assign the right system (gdal_edit -a_srs EPSG:…), or correct the transform",
    )
    PIXELS_BELOW_PRECISION = (
        "bad_georeference",
        "its pixels of {step:.12g} are smaller than coordinates up to {largest:.12g} can resolve: correct "
        "the transform",
    )
    PIXELS_ARE_LINES = "bad_georeference", "its transform maps pixels to lines: correct it"
    POLYGONS_FAILED = (
        "bad_georeference",
        "its polygons cannot be computed in {crs}: assign another system, or correct the transform",
    )

    # Windows

    TOO_MANY_WINDOWS = (
        "too_many_windows",
        "{width} x {height} pixels are {count:,} windows, more than the limit of {limit:,} for an image: use a larger "
        "--window, or cut the raster into parts (gdal_retile, gdal_translate -srcwin)",
    )

    DENSE = (
        "corrupt",
        "{width} x {height} pixels, of which {pixels:,} hold data, in a file of {count:,} bytes: no compression does "
        "that, so its blocks share their bytes, or are not there: export the raster anew",
    )

    # Stores: what every object shares

    CREDENTIALS_UNREADABLE = "access_denied", "credentials cannot be read: {cause}", True
    CREDENTIALS_MISSING = "access_denied", "no credentials; {advice}", True
    CREDENTIALS_EXPIRED = "access_denied", "the credentials have expired; renew them ({answer})", True
    CREDENTIALS_REFUSED = (
        "access_denied",
        "the store does not accept the credentials; check them ({answer})",
        True,
    )
    ACCESS_KEY = "access_denied", "the access key is unknown; check AWS_ACCESS_KEY_ID ({answer})", True
    SECRET_KEY = "access_denied", "the secret key is wrong; check AWS_SECRET_ACCESS_KEY ({answer})", True
    SESSION_TOKEN = "access_denied", "the session token is not valid; renew the credentials ({answer})", True
    CLOCK = (
        "access_denied",
        "the clock of this machine differs from the store's; set it ({answer})",
        True,
    )
    ACCOUNT = (
        "access_denied",
        "the store has suspended the account, or refuses it; ask the account's administrator ({answer})",
        True,
    )
    NO_ACCESS_POINT = (
        "not_found",
        "there is no access point of this name; check its ARN, account and region ({answer})",
        True,
    )
    REGION = (
        "storage_error",
        "the bucket {bucket!r} is in {region}: set AWS_REGION{value} (it is {here} now; {answer})",
        True,
    )
    SETTING = "access_denied", "{what}; {advice}", True
    UNREACHABLE = "storage_error", "cannot reach {endpoint}; check {setting} and the network", True
    UNTRUSTED = (
        "storage_error",
        "no secure connection to {endpoint}: its certificate is not trusted, or it does not speak https; check "
        "AWS_ENDPOINT_URL and AWS_CA_BUNDLE",
        True,
    )

    # Stores: one object

    GDAL_NAME = (
        "not_found",
        "a name of GDAL's virtual file systems (/vsicurl/, /vsis3/, …), which are not read: name the object itself, "
        "such as s3://BUCKET/KEY or https://HOST/PATH",
    )
    MISSING = "not_found", "it does not exist; check its name"
    NO_BUCKET = "not_found", "there is no bucket {bucket!r}; create it or check its name"
    NO_CONTAINER = "not_found", "there is no container {container!r}; create it or check its name"
    CONTAINER_NAME = "not_found", "{container!r} is not a name that a container can have; correct it"
    BUCKET_NAME = "not_found", "{bucket!r} is not a name that a bucket can have; correct it"
    OBJECT_NAME = "not_found", "the store does not accept the name; correct it"
    ARCHIVED = (
        "archived",
        "archived{tier}: restore it (`aws s3api restore-object`), and read it when that is done",
    )
    ARCHIVED_BLOB = (
        "archived",
        "archived: move it to the tier Hot (`az storage blob set-tier`), and read it when that is done",
    )
    ACCESS_DENIED = "access_denied", "access denied ({answer}); check the credentials' rights{payer}"
    KMS_KEY = (
        "access_denied",
        "the KMS key that encrypts it cannot be used; check its state and its policy ({answer})",
    )
    NOT_S3 = "storage_error", "the answer is not S3's; check AWS_ENDPOINT_URL"
    STORE_BUSY = (
        "storage_error",
        "the store receives too many requests; use fewer actors, or try again later ({answer})",
    )
    STORE_FAILING = "storage_error", "the store fails, after {tried}; try again later ({answer})"
    STORE_FULL = "storage_error", "the store has no room left; free some, or raise the quota ({answer})"
    STORE_REFUSED = (
        "storage_error",
        "the store refused the request; look this answer up in its documentation: {answer}",
    )
    CONNECTION_LOST = "storage_error", "the connection to the store failed ({cause}); try again later"
    TOO_SLOW = "storage_error", "the store was too slow; try again later"

    NO_ADDRESS = "not_found", "the host {host} has no address: correct the uri"
    CHANGED_SIZE = "changed", "it has {count:,} bytes, expected {planned:,}: " + _RETRY
    CHANGED_ETAG = "changed", "its etag is {etag}, expected {planned}: " + _RETRY
    CHANGED_ETAG_UNKNOWN = "changed", "it no longer has the etag {planned}: " + _RETRY
    CHANGED_PIXELS = "changed", "{actual} pixels, but {planned} when the run was planned: plan a new run"
    WEB_RASTER = "unsupported_format", "rasters on the web are not read in parts: copy them to a store"
    WEB_REFUSED = "access_denied", "{what} is not read: correct the uri, or copy the image to a store"
    WEB_MISSING = "not_found", "the server answered {status}: correct the uri"
    WEB_FORBIDDEN = "access_denied", "the server answered {status}: use an address that needs no credentials"
    WEB_FAILED = "storage_error", "the server answered {status}: correct the uri, or try again later"
    WEB_GAVE_UP = "storage_error", "{cause}, {tried}: try again later (`maskrcnn retry`)"
    CERTIFICATE = (
        "storage_error",
        "the certificate is not valid for the host, or not trusted: correct the uri, or copy the image to a store",
    )
    REDIRECTS = "storage_error", "more than {count} redirects: use the address that they lead to"
    READ_FAILED = "storage_error", "the file cannot be read ({cause}): check the disk or the store"
    READ_TIMED_OUT = "timeout", "not read within {seconds:g} s: check the store, and `maskrcnn retry`"

    @property
    def code(self) -> str:
        """One of `errors.ERROR_CODES`."""
        code: str = self.value[0]
        return code

    @property
    def message(self) -> str:
        """The message, with the names of its values in braces."""
        message: str = self.value[1]
        return message

    @property
    def concerns_all(self) -> bool:
        """Whether every object of the store is concerned."""
        return bool(self.value[2:])

    def text(self, **values: Any) -> str:
        """Return the message with its values, given by name."""
        return self.message.format(**values)

    def error(self, *, size: tuple[int, int] | None = None, **values: Any) -> ItemError:
        """Return the error for one image, to be raised.

        Args:
            size: the width and height of the image in pixels, for the columns of `images`; None if they are not known.
            values: of the message, by name.
        """
        width, height = size or (None, None)
        return ItemError(self.code, self.text(**values), width=width, height=height)
