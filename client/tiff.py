"""Field types of TIFF 6.0, by their names there; DNG, EXIF and TIFF/EP are made of them."""

BYTE, ASCII, SHORT, LONG, RATIONAL = 1, 2, 3, 4, 5
SBYTE, UNDEFINED, SSHORT, SLONG, SRATIONAL, FLOAT, DOUBLE, IFD = 6, 7, 8, 9, 10, 11, 12, 13
# Bytes of one value.
SIZES = {
    **dict.fromkeys((BYTE, ASCII, SBYTE, UNDEFINED), 1),
    **dict.fromkeys((SHORT, SSHORT), 2),
    **dict.fromkeys((LONG, SLONG, FLOAT, IFD), 4),
    **dict.fromkeys((RATIONAL, SRATIONAL, DOUBLE), 8),
}
